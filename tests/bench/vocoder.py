"""What the vocoder costs, against the web demo's way on the same engines; and what its options change.

    python -m tests.bench.vocoder speed BUNDLE [--seconds 20] [--steps 10] [--no-demo]
    python -m tests.bench.vocoder options BUNDLE [--seconds 16]

Prints tables for people and one JSON line last. The sound of random weights is noise: what `options` prints for such a
bundle shows that the options work, and how they rank, not how speech would sound.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.flow import FlowSettings
from edge_sdk.flow_stream import FlowStream
from edge_sdk.vocoder import Vocoder
from tests.vocoder import demo_loop

SEED = 20262
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    speed_parser = commands.add_parser("speed")
    speed_parser.add_argument("bundle")
    speed_parser.add_argument("--seconds", type=float, default=20.0)
    speed_parser.add_argument("--steps", type=int, default=10)
    speed_parser.add_argument("--context-s", type=float, default=6.0)
    speed_parser.add_argument("--no-demo", action="store_true")
    speed_parser.set_defaults(run=speed)
    options_parser = commands.add_parser("options")
    options_parser.add_argument("bundle")
    options_parser.add_argument("--seconds", type=float, default=16.0)
    options_parser.set_defaults(run=options)
    args = parser.parse_args()
    with Bundle.open(args.bundle) as bundle:
        print(json.dumps(args.run(bundle, args)))


def tokens(vocoder: Vocoder, seconds: float) -> Array:
    rate = vocoder.sample_rate / vocoder.samples_per_token
    return np.random.default_rng(SEED).integers(0, vocoder.codebook_size, int(seconds * rate))


# -- speed


def speed(bundle: Bundle, args: argparse.Namespace) -> dict[str, Any]:
    vocoder = Vocoder(bundle, steps=args.steps, context_s=args.context_s)
    ids = tokens(vocoder, args.seconds)
    vocoder.synthesize(ids[:60])  # pages, thread pools
    rows = _streamed(vocoder, ids)
    report: dict[str, Any] = {"streaming": _summary(rows), "peak_rss_mb": _peak_rss_mb()}
    print("streaming, seconds of work per second of sound")
    _table(rows)
    if not args.no_demo:
        demo = _demo(vocoder, ids)
        report["demo"] = _summary(demo)
        print("\nthe web demo's way, the same engines")
        _table(demo)
        report["ratio"] = {k: report["demo"][k] / report["streaming"][k] for k in ("flow", "waveform")}
        print(f"\ndemo / streaming: flow {report['ratio']['flow']:.1f}, waveform {report['ratio']['waveform']:.1f}")
    return report


def _streamed(vocoder: Vocoder, ids: Array) -> list[tuple[float, float, float]]:
    """(seconds of sound, flow seconds, waveform seconds) of every push that gave sound, the first without."""
    stream, rows, flow, waveform = vocoder.stream(), [], 0.0, 0.0
    for at in range(0, len(ids), 5):
        pcm = stream.push(ids[at : at + 5])
        if len(pcm):
            rows.append((len(pcm) / vocoder.sample_rate, stream.flow_s - flow, stream.waveform_s - waveform))
            flow, waveform = stream.flow_s, stream.waveform_s
    print(f"caches {stream.nbytes / 1e6:.0f} MB")
    stream.close()
    return rows


def _demo(vocoder: Vocoder, ids: Array) -> list[tuple[float, float, float]]:
    """The same for the demo: its generator runs both parts, so the flow is timed around `whole`."""
    flow, spent, rows = vocoder._flow, [0.0], []
    whole = flow.whole

    def timed(*args: Any, **kwargs: Any) -> Array:
        begin = time.perf_counter()
        mel = whole(*args, **kwargs)
        spent[0] += time.perf_counter() - begin
        return mel

    flow.whole = timed  # type: ignore[method-assign]
    begin, before = time.perf_counter(), 0.0
    for chunk in demo_loop.run(flow, vocoder._waveform, vocoder._settings, ids):
        now = time.perf_counter()
        in_flow = spent[0] - before
        rows.append((len(chunk.pcm) / vocoder.sample_rate, in_flow, now - begin - in_flow))
        begin, before = time.perf_counter(), spent[0]
    flow.whole = whole  # type: ignore[method-assign]
    return rows


def _summary(rows: list[tuple[float, float, float]]) -> dict[str, float]:
    """Per second of sound; the first and the last quarter show growth."""
    sound, flow, waveform = (np.array(column) for column in zip(*rows, strict=True))
    quarter = max(1, len(rows) // 4)
    total = flow + waveform
    return {
        "flow": float(flow.sum() / sound.sum()),
        "waveform": float(waveform.sum() / sound.sum()),
        "first_chunk_s": float(total[0]),
        "first_quarter": float(total[:quarter].sum() / sound[:quarter].sum()),
        "last_quarter": float(total[-quarter:].sum() / sound[-quarter:].sum()),
    }


def _table(rows: list[tuple[float, float, float]]) -> None:
    for name, value in _summary(rows).items():
        print(f"  {name:16s}{value:9.4f}")


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- options


def options(bundle: Bundle, args: argparse.Namespace) -> dict[str, Any]:
    vocoder = Vocoder(bundle, context_s=None)
    ids = tokens(vocoder, args.seconds)
    base = vocoder._settings
    exact = _mel(vocoder, base, ids)
    rate = bundle.manifest.vocoder.flow.frame_rate_hz  # type: ignore[union-attr]
    variants = {f"steps {n}": replace(base, steps=n) for n in bundle.manifest.vocoder.flow.steps}  # type: ignore[union-attr]
    variants |= {f"cfg_rate {r}": replace(base, cfg_rate=r) for r in (0.0, 0.5, 1.0)}
    variants |= {f"context {s} s": replace(base, context_frames=round(s * rate)) for s in (0, 1, 2, 4, 6, 8)}
    report = {name: _rms(_mel(vocoder, settings, ids) - exact) for name, settings in variants.items()}
    report["whole"] = _rms(vocoder._flow.whole(ids, base) - exact) if len(exact) <= len(vocoder._flow.noise) else 0.0
    print(f"RMS of the mel's change (natural log), RMS of the mel about its mean {exact.std():.2f}")
    for name, value in report.items():
        print(f"  {name:16s}{value:9.4f}")
    seams = {"seams": _seams(vocoder, ids), **{f"preview {n}": _preview(bundle, exact, ids, n) for n in (5, 10, 15)}}
    for name, values in seams.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    return {"mel_rms": report, **seams}


def _mel(vocoder: Vocoder, settings: FlowSettings, ids: Array) -> Array:
    stream = FlowStream(vocoder._flow, settings)
    return np.concatenate([*(stream.push(ids[at : at + 5]) for at in range(0, len(ids), 5)), stream.finish()])


def _seams(vocoder: Vocoder, ids: Array) -> dict[str, float]:
    """Jumps between neighbouring samples where chunks meet, over the jumps elsewhere."""
    stream = vocoder.stream()
    parts = [stream.push(ids[at : at + 5]) for at in range(0, len(ids), 5)] + [stream.finish()]
    seams = np.cumsum([len(p) for p in parts if len(p)])[:-1]
    jumps = np.abs(np.diff(np.concatenate(parts)))
    others = np.delete(jumps, seams - 1)
    return {
        "largest jump ratio": float(jumps[seams - 1].max() / others.max()),
        "mean jump ratio": float(jumps[seams - 1].mean() / others.mean()),
    }


def _preview(bundle: Bundle, exact: Array, ids: Array, count: int) -> dict[str, float]:
    """The preview's mel against the exact one, its last frame, and the jump of the sound around the seam."""
    early = Vocoder(bundle, context_s=None, preview_tokens=count)
    ratio = early._config.flow.frames_per_token
    mel, frames = _mel(early, early._settings, ids), count * ratio
    stream = early.stream()
    pcm = np.concatenate([*(stream.push(ids[i : i + 5]) for i in range(0, len(ids), 5)), stream.finish()])
    jumps = np.abs(np.diff(pcm))
    at = frames * pcm.size // len(mel)
    return {
        "mel rms": _rms(mel[:frames] - exact[:frames]),
        "mel rms at the seam": _rms(mel[frames - 1] - exact[frames - 1]),
        "largest jump ratio": float(
            jumps[at - 480 : at + 480].max() / np.delete(jumps, range(at - 480, at + 480)).max()
        ),
    }


def _rms(x: Array) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


if __name__ == "__main__":
    main()
