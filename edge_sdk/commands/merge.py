"""Merge two checkpoints of one architecture, alpha * A + (1 - alpha) * B, in little memory.

Computed in float32 and rounded to A's dtype; A's shards, configuration and tokenizer are kept. This is the merge of
Core-Cocktail training: A is the model after its first stage, B the one before.
"""

from __future__ import annotations

import argparse

from edge_sdk.commands.output import human_bytes, print_json, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint's folder")
    parser.add_argument("b", metavar="B", help="another of the same architecture")
    parser.add_argument("--alpha", type=_alpha, default=0.5, help="the share of A, from 0 to 1 (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="C", required=True, help="the folder to make")
    parser.add_argument("--resume", action="store_true", help="take up a merge that was interrupted")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.export.merge import merge_checkpoints

    done = merge_checkpoints(args.a, args.b, args.output, args.alpha, resume=args.resume, progress=progress())
    if args.json:
        print_json(
            {
                "output": str(done.path),
                "alpha": done.alpha,
                "tensors": done.tensors,
                "size_bytes": done.size_bytes,
                "other_dtypes": done.other_dtypes,
            }
        )
        return 0
    print(
        f"{done.path}: {done.tensors} tensors, {human_bytes(done.size_bytes)}, {done.alpha:g} * '{args.a}' + "
        f"{1 - done.alpha:g} * '{args.b}'"
    )
    for change, count in done.other_dtypes.items():
        print(f"{count} tensors are stored in another dtype in '{args.b}', the result has that of '{args.a}': {change}")
    return 0


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value
