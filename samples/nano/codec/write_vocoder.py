"""Writes the trained flow and waveform part as the vocoder folder that `edge-sdk export --vocoder` takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_sdk.export.checkpoint import read_json
from samples.nano.codec.checkpoint import write_vocoder
from samples.nano.codec.files import digest, load_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.folders import FLOW, TUNED, VOCODER, WAVEFORM
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.waveform import Waveform
from samples.nano.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="the folder to make (default: vocoder in the work folder)")


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    out = options.out or options.work / VOCODER
    write_vocoder(out, settings, load_flow(options.work, settings), load_waveform(options.work, settings))
    print(f"written to {out}: edge-sdk export CHECKPOINT --vocoder {out} -o BUNDLE")
    return 0


def load_flow(work: Path, settings: Settings) -> Flow:
    """The trained flow. Raises Error if there is none, or one of other sizes."""
    return load_model(work / FLOW, FLOW, lambda _: Flow(vocoder_sizes(settings.vocoder_spec())))


def load_waveform(work: Path, settings: Settings, *, tuned: bool = True) -> Waveform:
    """The trained waveform part; as `tune` made it of this one, unless `tuned` is off. Raises Error if there is none,
    or one of other sizes."""

    def build(sizes: dict[str, Any]) -> Waveform:
        return Waveform(vocoder_sizes(settings.vocoder_spec()))

    described = work / TUNED / f"{WAVEFORM}.json"
    if tuned and described.is_file() and read_json(described).get("of") == waveform_digest(work):
        return load_model(work / TUNED, WAVEFORM, build)
    return load_model(work / WAVEFORM, WAVEFORM, build)


def waveform_digest(work: Path) -> str:
    """Of what `waveform` trained. "" where there is none."""
    path = work / WAVEFORM / f"{WAVEFORM}.safetensors"
    return digest(path) if path.is_file() else ""
