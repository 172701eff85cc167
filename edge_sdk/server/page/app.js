// A Realtime client: the same protocol as any other, spoken by a page.
import { Microphone, Player, fromBase64, toBase64 } from "./sound.js";
import { Entry, Wave, showLatency, showProblem, showState, showStatus } from "./view.js";

const $ = (id) => document.getElementById(id);
const MOST_UNSENT = 1 << 20;

const token = new URLSearchParams(location.search).get("token");
if (token) history.replaceState(null, "", location.pathname); // not to stay in the address bar

const TOOLS = {
  current_time: {
    schema: { type: "function", name: "current_time", description: "The local date and time.", parameters: { type: "object", properties: {} } },
    run: () => ({ time: new Date().toString() }),
  },
};

let socket;
let talking = false;
let reply; // of the response that is told: { item, entry, playbackMs, audioMs }
let answers = []; // results of tools, to be sent when the response is done
const entries = new Map(); // item id -> Entry
const player = new Player(() => idle());
const wave = new Wave($("wave"));
const microphone = new Microphone((piece) => {
  wave.hear(piece);
  // A server that does not keep up is not buried.
  if (socket?.readyState === WebSocket.OPEN && socket.bufferedAmount < MOST_UNSENT) {
    send({ type: "input_audio_buffer.append", audio: toBase64(piece) });
  }
});

function send(event) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event));
}

function connect() {
  const address = new URL("/v1/realtime", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const protocols = token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"];
  return new Promise((resolve, reject) => {
    socket = new WebSocket(address, protocols);
    showStatus("connecting", "off");
    socket.onopen = resolve;
    socket.onmessage = (message) => receive(JSON.parse(message.data));
    socket.onclose = (close) => {
      showStatus(close.reason ? `closed: ${close.reason}` : "not connected", "bad");
      hangUp();
      reject(new Error("The server cannot be reached, or is busy."));
    };
  });
}

async function connected() {
  if (socket?.readyState !== WebSocket.OPEN) {
    entries.clear();
    await connect();
    showStatus("connected", "on");
    configure();
  }
}

function configure() {
  const offered = $("clock").checked ? Object.values(TOOLS).map((tool) => tool.schema) : [];
  const session = {
    type: "realtime",
    tools: offered,
    audio: {
      input: { turn_detection: { type: "server_vad", silence_duration_ms: Number($("silence").value) } },
      output: $("voice").value ? { voice: $("voice").value } : {},
    },
  };
  if ($("system").value.trim()) session.instructions = $("system").value;
  send({ type: "session.update", session });
}

// -- what the server says

const handlers = {
  "session.created": (event) => {
    $("model").textContent = event.session.model;
    if (!$("system").value) $("system").value = event.session.instructions;
  },
  "input_audio_buffer.speech_started": (event) => {
    interrupt();
    showState("Listening…");
    entries.set(event.item_id, new Entry("user", "you", "…"));
  },
  "input_audio_buffer.speech_stopped": () => showState("Thinking…"),
  "input_audio_buffer.committed": (event) => {
    const entry = entries.get(event.item_id);
    if (entry) entry.words.textContent = "(spoken)";
  },
  "response.created": () => {
    player.begin();
    reply = { playbackMs: null, audioMs: 0 };
    $("stop").disabled = false;
    showState("Thinking…");
  },
  "response.output_item.added": (event) => {
    if (event.item.type !== "message") return;
    reply.item = event.item.id;
    reply.entry = new Entry("assistant", "assistant");
    entries.set(event.item.id, reply.entry);
  },
  "response.output_audio_transcript.delta": (event) => reply.entry?.add(event.delta),
  "response.output_text.delta": (event) => reply.entry?.add(event.delta),
  "response.output_audio.delta": (event) => {
    const samples = fromBase64(event.delta);
    const wait = player.play(samples);
    reply.playbackMs ??= 1000 * (wait + (player.context.outputLatency || 0));
    reply.audioMs += samples.length / 24;
    showState("Speaking. Interrupt by talking.");
  },
  "response.function_call_arguments.done": (event) => {
    new Entry("tool", "calls", `${event.name}(${event.arguments})`);
    const tool = TOOLS[event.name];
    const output = JSON.stringify(tool ? tool.run() : { error: `there is no tool ${event.name}` });
    new Entry("tool", "result", output);
    answers.push({ type: "function_call_output", call_id: event.call_id, output });
  },
  "response.done": (event) => {
    const { response } = event;
    if (reply?.entry && !reply.entry.words.textContent) reply.entry.add("(no words)");
    if (response.edge_sdk) showLatency({ ...response.edge_sdk.timings, playback_ms: reply?.playbackMs });
    if (response.status === "failed") showProblem(response.status_details.error.message);
    const results = answers;
    answers = [];
    if (results.length && response.status === "completed") {
      results.forEach((item) => send({ type: "conversation.item.create", item }));
      send({ type: "response.create" });
    }
    if (!player.playing) idle();
  },
  "conversation.item.retrieved": (event) => entries.get(event.item.id)?.cut(event.item.content[0]?.transcript ?? ""),
  error: (event) => {
    if (event.error.code !== "response_cancel_not_active") showProblem(event.error.message);
  },
};

function receive(event) {
  handlers[event.type]?.(event);
}

// -- what the user does

function interrupt() {
  // What was not heard is forgotten here and there: the history shall hold what the user knows.
  if (player.playing && reply?.item) {
    const heard = Math.floor(Math.min(player.stop(), reply.audioMs));
    send({ type: "conversation.item.truncate", item_id: reply.item, content_index: 0, audio_end_ms: heard });
    send({ type: "conversation.item.retrieve", item_id: reply.item });
  }
}

function idle() {
  $("stop").disabled = true;
  showState(talking ? "Talk. The end of your turn is heard." : "Press the button and talk.");
}

function hangUp() {
  talking = false;
  microphone.close();
  $("talk").setAttribute("aria-pressed", "false");
  $("talk").querySelector("span").textContent = "Talk";
  if (!player.playing) idle();
}

async function talk() {
  if (talking) {
    send({ type: "input_audio_buffer.clear" });
    hangUp();
    return;
  }
  try {
    await connected();
    await microphone.open();
    talking = true;
    $("talk").setAttribute("aria-pressed", "true");
    $("talk").querySelector("span").textContent = "Stop talking";
    idle();
  } catch (problem) {
    hangUp();
    const denied = problem.name === "NotAllowedError" || problem.name === "NotFoundError" || !navigator.mediaDevices;
    showProblem(denied ? "No microphone: allow it for this page (browsers want https or localhost)." : problem.message);
  }
}

function stop() {
  send({ type: "response.cancel" });
  interrupt();
  player.stop();
  idle();
}

async function write(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  try {
    await connected();
  } catch (problem) {
    showProblem(problem.message);
    return;
  }
  $("text").value = "";
  if (!$("stop").disabled) stop();
  new Entry("user", "you", text);
  send({ type: "conversation.item.create", item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
  send({ type: "response.create" });
}

async function listVoices() {
  const response = await fetch("/voices", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (!response.ok) throw new Error("A token is needed: open this page with ?token=...");
  const { voices, model } = await response.json();
  $("model").textContent = model;
  $("voice").replaceChildren(...voices.map((name) => new Option(name, name)));
  $("voice").disabled = !voices.length;
}

$("talk").addEventListener("click", talk);
$("stop").addEventListener("click", stop);
$("write").addEventListener("submit", write);
$("apply").addEventListener("click", () => connected().then(configure).catch((problem) => showProblem(problem.message)));
$("silence").addEventListener("input", () => ($("silence-ms").textContent = `${$("silence").value} ms`));
wave.run(player);
listVoices().catch((problem) => showProblem(problem.message));
