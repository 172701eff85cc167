"""The sound card over PulseAudio's null sinks: delays, how soon `flush` is silence, what a callback costs.

    python -m tests.bench.sound_card [--repeats 20]

The microphone is the speaker's monitor. Times are by the devices' clocks, as the card knows them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.audio import StreamResampler
from edge_sdk.audio_link import Heard
from edge_sdk.errors import DeviceError
from edge_sdk.playback import Playback
from edge_sdk.sound_card import SoundCard
from tests.pulse import missing, pulse_server

LOUD = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    figures: dict[str, Any] = {"callback_us": callback_us(), "resampler_delay_ms": resampler_delays()}
    if missing():
        print(f"no devices: {missing()}")
    else:
        with tempfile.TemporaryDirectory() as folder, pulse_server(Path(folder)):
            for buffer_ms in (10.0, 20.0):
                figures[f"buffer {buffer_ms:.0f} ms"] = card_figures(buffer_ms, options.repeats)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(json.dumps(figures))


def card_figures(buffer_ms: float, repeats: int) -> dict[str, Any]:
    """Milliseconds, median and worst of the repeats."""
    with SoundCard(
        input_device="speaker_in", output_device="speaker_out", buffer_ms=buffer_ms, echo_cancellation="off"
    ) as card:
        heard: list[Heard] = []
        reader = threading.Thread(target=read, args=(card, heard))
        reader.start()
        time.sleep(1.5)
        begins, ends, after = [], [], []
        tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(72000) / 24000)).astype(np.float32)
        for _ in range(repeats):
            heard.clear()
            card.begin_reply()
            played_at = card.now()
            card.play(tone, 24000)
            time.sleep(0.4)
            flushed_at = card.now()
            told_ms = card.flush()
            time.sleep(0.35)
            loud = [span for h in list(heard) for span in loud_span(h)]
            begins.append(1e3 * (loud[0] - played_at))
            ends.append(1e3 * (loud[-1] - flushed_at))
            after.append(card.played_ms - told_ms)
        stats = card.stats
    reader.join()
    return {
        "play() to sound": spread(begins),
        "flush() to silence": spread(ends),
        "played after flush()": spread(after),
        "delays named": [round(stats.input_delay_ms, 1), round(stats.output_delay_ms, 1)],
        "device underruns": stats.device_underruns,
    }


def read(card: SoundCard, heard: list[Heard]) -> None:
    try:
        while True:
            piece = card.read(0.5)
            if piece is not None:
                heard.append(piece)
    except DeviceError:
        return


def loud_span(h: Heard) -> list[float]:
    where = np.flatnonzero(np.abs(h.pcm) > LOUD)
    begin_s = h.at_s - len(h.pcm) / 16000
    return [begin_s + where[0] / 16000, begin_s + where[-1] / 16000] if len(where) else []


def callback_us() -> dict[str, float]:
    """What the speaker's callback does for 20 ms at 48 kHz, idle and while a reply plays."""
    playback, out = Playback(48000), np.empty(960, np.float32)
    costs = {}
    for state in ("idle", "playing"):
        if state == "playing":
            playback.play(np.zeros(24000 * 60, np.float32), 24000)
        began = time.process_time()
        for k in range(2000):
            playback.fill(out, k * 0.02)
            out.tobytes()
        costs[state] = round((time.process_time() - began) * 1e6 / 2000, 1)
    return costs


def resampler_delays() -> dict[str, list[float]]:
    """Least and most that resampled sound is behind, fed in pieces of 10 ms."""
    delays = {}
    for rate, to_rate in ((48000, 16000), (44100, 16000), (24000, 48000)):
        for low_delay in (False, True):
            stream, made, behind = StreamResampler(rate, to_rate, low_delay=low_delay), 0, []
            for k in range(300):
                made += len(stream.feed(np.zeros(rate // 100, np.float32)))
                behind.append((k + 1) * 10 - 1e3 * made / to_rate)
            name = f"{rate} -> {to_rate}{', low delay' if low_delay else ''}"
            delays[name] = [round(min(behind[100:]), 1), round(max(behind[100:]), 1)]
    return delays


def spread(values: list[float]) -> str:
    return f"{np.median(values):.1f} (worst {max(values):.1f})"


if __name__ == "__main__":
    main()
