"""Plays noise, and voices at given times, to a device: what a microphone behind it hears. A process of its own, so that
the program that is measured does not disturb it.

    python -m tests.bench.microphone_feed DEVICE [--snr 20]

Standard input: a JSON object a line, {"path": a .npy file, float32 [n] at 16 kHz, "at_s": when its first sample is to
sound, by the system's monotonic clock}. Its end is the end. Standard output: "ready", and in the end a JSON object with
what was late.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.audio_devices import devices_of, find_device, import_pyaudio, open_portaudio, quiet_stderr
from tests.room import RATE, USER_DB, pink

FRAMES = RATE // 10  # long: what is heard must not have gaps where the machine is busy


class Feed:
    """The callback's side. `voices` wait: (when, sound). A sample's time is the median of what callbacks name."""

    def __init__(self, snr_db: float | None, seed: int) -> None:
        gain = 0.0 if snr_db is None else 10 ** ((USER_DB - snr_db) / 20)
        self._noise = (pink(np.random.default_rng(seed), 30 * RATE) * gain).astype(np.float32)  # repeated
        self.voices: deque[tuple[float, Any]] = deque()
        self._sounding: list[tuple[int, Any]] = []
        self._origins: deque[float] = deque(maxlen=101)
        self._made = 0
        self.late_ms: list[float] = []
        self.underruns = 0

    def __call__(self, _: None, frames: int, times: dict[str, float], status: int) -> tuple[bytes, int]:
        pyaudio = import_pyaudio()
        self.underruns += bool(status & pyaudio.paOutputUnderflow)
        leaves_s = time.monotonic() + times["output_buffer_dac_time"] - times["current_time"]
        self._origins.append(leaves_s - self._made / RATE)
        origin_s = float(np.median(self._origins))
        while self.voices:
            at_s, sound = self.voices.popleft()
            first = round((at_s - origin_s) * RATE)
            self.late_ms.append(max(0, self._made - first) * 1000 / RATE)
            self._sounding.append((max(first, self._made), sound))
        where = (self._made + np.arange(frames)) % len(self._noise)
        out = self._noise[where]
        self._sounding = [(at, s) for at, s in self._sounding if at + len(s) > self._made]
        for at, sound in self._sounding:
            part = sound[max(0, self._made - at) : max(0, self._made + frames - at)]
            start = max(0, at - self._made)
            out[start : start + len(part)] += part
        self._made += frames
        return np.clip(out, -1, 1).tobytes(), pyaudio.paContinue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("--snr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    feed, pyaudio, port = Feed(args.snr, args.seed), import_pyaudio(), open_portaudio()
    device = find_device(devices_of(port), args.device, "output")
    with quiet_stderr():
        stream = port.open(
            RATE, 1, pyaudio.paFloat32, output=True, output_device_index=device["index"], frames_per_buffer=FRAMES,
            stream_callback=feed,
        )  # fmt: skip
    time.sleep(2.0)  # PulseAudio drops some sound while it takes a stream in
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        feed.voices.append((wanted["at_s"], np.load(Path(wanted["path"]))))
    stream.close()
    port.terminate()
    print(
        json.dumps({"voices": len(feed.late_ms), "late_ms": max(feed.late_ms, default=0), "underruns": feed.underruns})
    )


if __name__ == "__main__":
    main()
