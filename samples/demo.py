"""The main job, start to end, on a real recording: export a checkpoint, then ask the bundle inside the package.

    python samples/demo.py [RECORDING]

Writes out/reply.wav and out/reply.png (the reply's spectrogram over the timeline of its text and speech tokens), and
prints where the time went. Until trained weights of a small model ship with the package, both models here are random:
what they say is noise, and how fast and how exactly they say it is not.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import edge_sdk
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import PRESETS, write_language_checkpoint, write_vocoder_checkpoint

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "samples" / "audio" / "ck7vv9ag.wav"
OUT = ROOT / "out"


def main(recording: Path) -> None:
    OUT.mkdir(exist_ok=True)
    show_export()
    with edge_sdk.Chat(generation=edge_sdk.GenerationConfig(max_new_tokens=40, seed=7)) as chat:
        print(f"\nasking the bundle '{chat.bundle.name}': {recording.name}")
        for note in chat.bundle.manifest.notes:
            print(f"  {note}")
        chat.send(text="Hello.")  # the first run of a session loads and warms up
        chat.reset()
        text, chunks = [], []
        with chat.stream(audio=recording) as events:
            for event in events:
                if isinstance(event, edge_sdk.TextDelta):
                    text.append(event)
                elif isinstance(event, edge_sdk.AudioChunk):
                    chunks.append(event)
        reply = events.reply
        step_s, group = chat.step_ms / 1000, chat.group_size
    reply.save(OUT / "reply.wav")
    draw(reply, text, step_s, group)
    show_timings(reply, len(chunks))
    print(f"\nwrote {OUT / 'reply.wav'} and {OUT / 'reply.png'}")


def show_export() -> None:
    """The export for real: a checkpoint folder and a vocoder folder in, a verified bundle out."""
    source, target = OUT / "checkpoint", OUT / "exported.bundle"
    if not source.exists():
        write_language_checkpoint(source / "language", PRESETS["tiny"].language, seed=1)
        write_vocoder_checkpoint(source / "vocoder", PRESETS["tiny"].vocoder, seed=1)
    began = time.perf_counter()
    voice = next((source / "vocoder" / "voices").glob("*.npy"))
    options = ExportOptions(overwrite=True)
    export_bundle(source / "language", source / "vocoder", target, options, voices={voice.stem: voice})
    exported = time.perf_counter()
    with edge_sdk.Bundle.open(target) as bundle:
        report = bundle.verify()
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) / 1e6
    print(f"exported {target.name}: {size:.1f} MB in {exported - began:.1f} s; self-test {report}")


def show_timings(reply: edge_sdk.Reply, chunks: int) -> None:
    t = reply.timings
    sound_ms = max(1.0, 1000 * t.audio_s)
    rows = [
        ("time to first token", f"{t.ttft_ms:.0f} ms", ""),
        ("time to first audio", f"{t.ttfa_ms or 0:.0f} ms", f"{chunks} chunks"),
        ("encoder", f"{t.encode_ms:.0f} ms", ""),
        ("prefill", f"{t.prefill_ms:.0f} ms", f"{t.prompt_tokens} positions"),
        ("backbone", f"{t.backbone_ms:.0f} ms", f"RTF {t.backbone_ms / sound_ms:.3f}"),
        ("speech head", f"{t.speech_head_ms:.0f} ms", f"RTF {t.speech_head_ms / sound_ms:.3f}"),
        ("flow", f"{t.flow_ms:.0f} ms", f"RTF {t.flow_ms / sound_ms:.3f}"),
        ("waveform", f"{t.waveform_ms:.0f} ms", f"RTF {t.waveform_ms / sound_ms:.3f}"),
        ("whole reply", f"{t.total_ms:.0f} ms", f"RTF {t.rtf or 0:.3f} for {t.audio_s:.2f} s of sound"),
        ("caches", f"{(t.cache_bytes + t.vocoder_cache_bytes) / 1e6:.0f} MB", ""),
        ("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB", "of the process"),
    ]
    print()
    for name, value, note in rows:
        print(f"  {name:<20} {value:>9}  {note}")


def draw(reply: edge_sdk.Reply, text: list[edge_sdk.TextDelta], step_s: float, group: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    top.specgram(reply.audio, NFFT=1024, noverlap=768, Fs=reply.sample_rate, vmin=-140)
    top.set_ylabel("Hz")
    top.set_title(f"reply of {len(reply.audio) / reply.sample_rate:.2f} s")
    for delta in text:
        at = max(0, delta.step - 1) * step_s  # step 0 says that speech begins; step 1 makes the first group
        bottom.text(at, 0.55, printable(delta.text), fontsize=7, rotation=45)
        bottom.axvline(at, color="0.8", linewidth=0.5)
    times = [n * step_s / group for n in range(len(reply.speech_ids))]
    bottom.scatter(times, [0.2] * len(times), c=reply.speech_ids, marker="|", s=60, cmap="viridis")
    bottom.set_ylim(0, 1.3)
    bottom.set_xlim(0, len(reply.audio) / reply.sample_rate)
    bottom.set_yticks((0.2, 0.6), ("speech tokens", "text"))
    bottom.set_xlabel("s")
    figure.savefig(OUT / "reply.png", dpi=110)


def printable(text: str) -> str:
    """What the plot's font can draw."""
    return "".join(c if c.isprintable() and ord(c) < 0x2000 else "·" for c in text).replace("$", r"\$")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDING)
