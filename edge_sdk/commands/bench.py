"""Measure a bundle on this machine: every stage beside its physical limit, our own overhead, and a whole reply.

Ratios of one run mean something; milliseconds of two runs on a shared machine do not compare.
"""

from __future__ import annotations

import argparse
from typing import Any

from edge_sdk.commands.output import human_bytes, print_json, print_table, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="path; without it the bundle of the package")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="decode steps (default: %(default)s)")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int)


def run(args: argparse.Namespace) -> int:
    from edge_sdk.bench import bench
    from edge_sdk.bundle import Bundle
    from edge_sdk.errors import Error

    if args.steps < 10:
        raise Error(f"--steps must be at least 10, found {args.steps}")
    with Bundle.open(args.bundle) as bundle:
        found = bench(bundle, runtime=args.runtime, threads=args.threads, steps=args.steps, report=progress())
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    print(f"{found['bundle']} on {found['runtime']}, {found['threads']} threads; ", end="")
    print(f"memory read at {found['read_gb_s']:.1f} GB/s")
    rows = [[s["stage"], s["ms"], s["p95_ms"], s["limit_ms"], s["over_limit"], s["rtf"]] for s in found["stages"]]
    print_table(rows, ("stage", "ms", "p95", "limit ms", "x limit", "RTF"))
    overhead = found["overhead"]
    print(
        f"outside the sessions: {overhead['outside_sessions_ms']:.2f} ms a step over {overhead['steps']} steps; "
        f"last steps / first steps {overhead['growth']:.2f}"
    )
    reply = found["reply"]
    sound = f"{reply['ttfa_ms']:.0f} ms to first sound, " if reply["ttfa_ms"] is not None else ""
    rtf = f", RTF {reply['rtf']:.2f}" if reply["rtf"] is not None else ""
    print(f"reply: {reply['ttft_ms']:.0f} ms to first token, {sound}{reply['audio_s']:.1f} s of sound{rtf}")
    caches = f"{human_bytes(reply['cache_bytes'])} + {human_bytes(reply['vocoder_cache_bytes'])}"
    print(f"caches {caches}, peak memory of the process {human_bytes(found['peak_rss_bytes'])}")
