// The microphone, in the audio thread: any rate in, 24 kHz 16-bit PCM out, in pieces of 40 ms.
// A windowed sinc at the lower of both rates' limits, evaluated where each output sample lies.
const RATE = 24000;
const PIECE = 960;
const LOBES = 12;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE;
    this.cutoff = Math.min(1, 1 / this.step);
    this.reach = Math.ceil(LOBES / this.cutoff);
    this.kept = new Float32Array(2 * this.reach + 1);
    this.at = this.reach; // of the next output sample, in what is kept
    this.piece = new Int16Array(PIECE);
    this.count = 0;
  }

  kernel(x) {
    const y = x * this.cutoff;
    if (Math.abs(y) >= LOBES) return 0;
    const window = 0.5 + 0.5 * Math.cos((Math.PI * y) / LOBES);
    return y === 0 ? this.cutoff : (this.cutoff * window * Math.sin(Math.PI * y)) / (Math.PI * y);
  }

  sampleAt(position) {
    const middle = Math.floor(position);
    let sum = 0;
    for (let n = middle - this.reach + 1; n <= middle + this.reach; n++) sum += this.kept[n] * this.kernel(position - n);
    return sum;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    const size = channels[0].length;
    const joined = new Float32Array(this.kept.length + size);
    joined.set(this.kept);
    for (const channel of channels) {
      for (let n = 0; n < size; n++) joined[this.kept.length + n] += channel[n] / channels.length;
    }
    this.kept = joined;
    while (this.at + this.reach + 1 < this.kept.length) {
      this.put(this.step === 1 ? this.kept[this.at] : this.sampleAt(this.at));
      this.at += this.step;
    }
    const gone = Math.max(0, Math.floor(this.at) - this.reach);
    this.kept = this.kept.slice(gone);
    this.at -= gone;
    return true;
  }

  put(value) {
    this.piece[this.count++] = Math.max(-1, Math.min(1, value)) * 32767;
    if (this.count === PIECE) {
      this.port.postMessage(this.piece.slice());
      this.count = 0;
    }
  }
}

registerProcessor("capture", Capture);
