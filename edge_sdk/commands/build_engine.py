"""Build a bundle's TensorRT engines: one folder per library version and GPU architecture, beside the bundle's files.

tensorrt_rtx builds for any architecture it knows, without a GPU; tensorrt for the GPU in this machine. Engines that
are up to date are left alone. Needs edge_sdk[export] and edge_sdk[tensorrt-rtx] (or tensorrt).
"""

from __future__ import annotations

import argparse

from edge_sdk.commands.output import human_bytes, print_json, print_table, progress
from edge_sdk.errors import ExportError, RuntimeUnavailableError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="the bundle; the one in the package if not given")
    parser.add_argument("--runtime", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    parser.add_argument(
        "--sm", metavar="89[,120]", default="", help="GPU architectures; the GPU in this machine if not given"
    )
    parser.add_argument(
        "--precision", choices=("fp16", "fp32"), default="fp16",
        help="of products, attention and caches; quantized weights stay quantized (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--context-tokens", type=int, default=2048, metavar="N",
        help="longest conversation in positions of 200 ms; sets the size of the caches (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--vocoder-context", type=float, default=6.0, metavar="S",
        help="seconds of earlier sound the vocoder keeps seeing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--one-profile", action="store_true",
        help="one profile for prefill and decode: less memory for float16 weights, which two profiles hold twice",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="build also what is up to date")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.bundle import Bundle

    try:
        from edge_sdk.export.engine.build import EngineOptions, build_engines, describe, parse_architectures
    except ImportError as e:
        raise ExportError(
            f"building engines needs packages that are missing ({e}): pip install 'edge_sdk[export]'"
        ) from e
    from edge_sdk.runtimes import cuda, trt_library

    library = trt_library.load(args.runtime)
    present = None if cuda.unavailable() else cuda.Device(0).sm
    if not args.sm and present is None:
        raise RuntimeUnavailableError(
            f"there is no GPU here to build for ({cuda.unavailable()}); name one: --sm 89 for SM 8.9"
        )
    sms = parse_architectures(args.sm) if args.sm else [int(present or 0)]
    options = EngineOptions(
        precision=args.precision, context_tokens=args.context_tokens, vocoder_context_s=args.vocoder_context,
        one_profile=args.one_profile, force=args.force,
    )  # fmt: skip
    with Bundle.open(args.bundle) as bundle:
        made = build_engines(bundle, library, sms, options, present=present, progress=progress())
    if args.json:
        print_json([{"path": str(m.path), "built": m.built, "stamp": m.stamp.to_json()} for m in made])
        return 0
    for folder in made:
        total = sum(entry.size for entry in folder.stamp.graphs.values())
        print(f"{folder.path}: {'built' if folder.built else 'up to date'}, {human_bytes(total)}")
        rows = [[k, human_bytes(size) if size else None, how, kv] for k, size, how, kv in describe(folder.stamp)]
        print_table(rows, ("graph", "size", "attention", "cache updates in place"))
    return 0
