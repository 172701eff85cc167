// What the page shows: the conversation, the waveform, the latency of the last turn.
const $ = (id) => document.getElementById(id);

const PHASES = [
  ["endpoint_ms", "silence waited"],
  ["queue_ms", "queue"],
  ["encode_ms", "encoding"],
  ["prefill_ms", "prefill"],
  ["first_token_ms", "first token"],
  ["first_audio_ms", "first sound"],
  ["playback_ms", "playback"],
];

export function showStatus(text, state) {
  $("status").textContent = text;
  $("status").dataset.state = state;
}

export function showState(text) {
  $("state").textContent = text;
}

let fading;
export function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => ($("problem").hidden = true), 8000);
}

export class Entry {
  constructor(kind, who, words = "") {
    this.line = document.createElement("li");
    this.line.className = kind;
    const name = document.createElement("span");
    name.className = "who";
    name.textContent = who;
    this.words = document.createElement("span");
    this.words.className = "words";
    this.line.append(name, this.words);
    $("log").append(this.line);
    this.add(words);
  }

  add(text) {
    this.words.textContent += text;
    const log = $("log");
    log.scrollTop = log.scrollHeight;
  }

  cut(heard) {
    // `heard` is what the server keeps of it.
    if (!this.words.textContent.startsWith(heard)) return;
    const rest = this.words.textContent.slice(heard.length);
    this.line.classList.add("cut");
    this.words.classList.add("heard");
    this.words.textContent = heard;
    const lost = document.createElement("span");
    lost.className = "words";
    lost.textContent = rest;
    this.line.append(lost);
  }
}

export function showLatency(timings) {
  const rows = PHASES.filter(([key]) => timings[key] != null);
  const most = Math.max(...rows.map(([key]) => timings[key]), 1);
  $("latency").replaceChildren(
    ...rows.map(([key, name]) => {
      const row = document.createElement("div");
      row.className = "row";
      const term = document.createElement("dt");
      term.textContent = name;
      const meter = document.createElement("meter");
      meter.max = most;
      meter.value = timings[key];
      meter.setAttribute("aria-hidden", "true");
      const value = document.createElement("dd");
      value.textContent = `${timings[key].toFixed(timings[key] < 10 ? 1 : 0)} ms`;
      row.append(term, meter, value);
      return row;
    }),
  );
  const heard = (timings.endpoint_ms ?? 0) + (timings.first_audio_ms ?? timings.first_token_ms ?? 0) + (timings.playback_ms ?? 0);
  $("latency-sum").textContent = `From your last word to the first sound: ${heard.toFixed(0)} ms`;
}

export class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.levels = new Array(160).fill([0, 0]);
    const motion = matchMedia("(prefers-reduced-motion: reduce)");
    this.slow = motion.matches;
    this.mine = 0;
    this.lastDrawn = 0;
  }

  hear(samples) {
    let peak = 0;
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
    this.mine = Math.max(this.mine, peak / 32768);
  }

  run(player) {
    const shown = new Float32Array(1024);
    const draw = (now) => {
      requestAnimationFrame(draw);
      if (now - this.lastDrawn < (this.slow ? 250 : 40)) return;
      this.lastDrawn = now;
      let theirs = 0;
      if (player.meter && player.playing) {
        player.meter.getFloatTimeDomainData(shown);
        for (const value of shown) theirs = Math.max(theirs, Math.abs(value));
      }
      this.levels.push([this.mine, theirs]);
      this.levels.shift();
      this.mine = 0;
      this.paint();
    };
    requestAnimationFrame(draw);
  }

  paint() {
    const { width, height } = this.canvas;
    const pen = this.canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colours = ["--user", "--reply"].map((name) => style.getPropertyValue(name));
    pen.clearRect(0, 0, width, height);
    const step = width / this.levels.length;
    this.levels.forEach((pair, n) =>
      pair.forEach((level, which) => {
        const size = Math.max(level > 0 ? 2 : 1, Math.sqrt(level) * height * 0.48);
        pen.fillStyle = colours[which];
        pen.globalAlpha = level > 0 ? 0.9 : 0.25;
        pen.fillRect(n * step, which ? height / 2 : height / 2 - size, step * 0.62, size);
      }),
    );
    pen.globalAlpha = 1;
  }
}
