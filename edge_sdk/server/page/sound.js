// Sound in and out: the microphone as pieces of 24 kHz PCM, and a player that knows what was heard.
export const RATE = 24000;

export class Microphone {
  constructor(onPiece) {
    this.onPiece = onPiece;
  }

  async open() {
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("/page/capture.js");
    this.node = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = (message) => this.onPiece(message.data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
    await this.context.resume();
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
    this.stream = this.context = undefined;
  }
}

export class Player {
  constructor(onIdle) {
    this.onIdle = onIdle;
    this.sources = new Set();
    this.begin();
  }

  begin() {
    // Its own rate, so that pieces join without a seam.
    this.context ??= new AudioContext({ sampleRate: RATE });
    this.meter ??= this.makeMeter();
    this.context.resume();
    this.spans = []; // [from, to] in the context's time, of this reply
    this.end = 0;
  }

  makeMeter() {
    const meter = this.context.createAnalyser();
    meter.fftSize = 1024;
    meter.connect(this.context.destination);
    return meter;
  }

  play(samples) {
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    const channel = buffer.getChannelData(0);
    for (let n = 0; n < samples.length; n++) channel[n] = samples[n] / 32768;
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.meter);
    const start = Math.max(this.end, this.context.currentTime + 0.02);
    source.start(start);
    this.end = start + buffer.duration;
    this.spans.push([start, this.end]);
    this.sources.add(source);
    source.onended = () => {
      this.sources.delete(source);
      if (!this.sources.size) this.onIdle();
    };
    return start - this.context.currentTime;
  }

  get playing() {
    return this.sources.size > 0;
  }

  get playedMs() {
    // What has left the context is not yet what was heard.
    const now = this.context.currentTime - (this.context.outputLatency || this.context.baseLatency || 0);
    return 1000 * this.spans.reduce((sum, [from, to]) => sum + Math.max(0, Math.min(now, to) - from), 0);
  }

  stop() {
    const played = this.playedMs;
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    this.spans = [];
    this.end = 0;
    return played;
  }
}

export function toBase64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let n = 0; n < bytes.length; n += 8192) text += String.fromCharCode(...bytes.subarray(n, n + 8192));
  return btoa(text);
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Int16Array(bytes.buffer);
}
