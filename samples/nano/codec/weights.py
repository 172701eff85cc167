"""Puts the tree's trained codec, flow and waveform part into the work folder, so that they need no training.

samples/nano/weights holds them in float16, for the preset `pocket`, with sizes and hashes. `encode` comes after it:
what is trained on its codes speaks with this flow. `--save` writes the work folder's own there instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from edge_sdk.errors import Error
from samples.nano.codec.encode import load_tokenizer
from samples.nano.codec.files import load_model, save_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.folders import CODEC, FLOW, WAVEFORM
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.tokenizer import Tokenizer
from samples.nano.codec.waveform import Waveform
from samples.nano.codec.write_vocoder import load_flow, load_waveform
from samples.nano.settings import Settings

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="their folder (default: this tree's)")
    parser.add_argument("--save", action="store_true", help="write the work folder's own there, in float16")


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    if options.save:
        save(options.work, options.weights, settings)
        print(f"written to {options.weights}")
        return 0
    taken = [options.work / name for name in (CODEC, FLOW, WAVEFORM) if (options.work / name).exists()]
    if taken:
        raise Error(f"'{taken[0]}' is there already; remove it to take this tree's in its place")
    take(options.weights, options.work, settings)
    print(f"{CODEC}, {FLOW} and {WAVEFORM} are in {options.work}: run python -m samples.nano encode")
    return 0


def save(work: Path, folder: Path, settings: Settings) -> None:
    """Raises Error for what is not trained."""
    tokenizer = load_tokenizer(work, settings)
    models: Mapping[str, nn.Module] = {FLOW: load_flow(work, settings), WAVEFORM: load_waveform(work, settings)}
    tokenizer.save(folder, settings, torch.float16)
    for name, model in models.items():
        save_model(folder, name, model, {"name": settings.name}, torch.float16)


def take(folder: Path, work: Path, settings: Settings) -> None:
    """Raises Error for files that are damaged, missing or of another preset's sizes; nothing is then written."""
    sizes = vocoder_sizes(settings.vocoder_spec())
    tokenizer = Tokenizer.load(folder, settings.sound)
    if tokenizer.size != settings.codec:
        raise Error(f"the weights in '{folder}' are not of the preset '{settings.name}'; pocket is what they are for")
    flow = load_model(folder, FLOW, lambda _: Flow(sizes))
    waveform = load_model(folder, WAVEFORM, lambda _: Waveform(sizes))
    tokenizer.save(work / CODEC, settings)
    save_model(work / FLOW, FLOW, flow, {"name": settings.name})
    save_model(work / WAVEFORM, WAVEFORM, waveform, {"name": settings.name})
