"""Core-Cocktail's merge: alpha * stage 1 + (1 - alpha) * the model before it, by `edge-sdk merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.export.merge import merge_checkpoints
from samples.nano.needed import checkpoint_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alpha", type=float, default=0.5, help="the share of stage 1 (default: %(default)s)")
    parser.add_argument("--stage1", type=Path, help="default: WORK/cocktail1")
    parser.add_argument("--before", type=Path, help="the model that stage 1 began with (default: WORK/prealign)")
    parser.add_argument("-o", "--output", type=Path, help="default: WORK/merged")


def run(options: argparse.Namespace) -> int:
    before = checkpoint_folder(options.work, "prealign", options.before)
    stage1 = checkpoint_folder(options.work, "cocktail1", options.stage1)
    done = merge_checkpoints(stage1, before, options.output or options.work / "merged", options.alpha)
    print(f"wrote {done.path}: {done.alpha:g} of {stage1}, the rest of {before}, {done.tensors} tensors")
    return 0
