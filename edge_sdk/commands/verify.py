"""Check a bundle: the hash of every file, then the self-test recorded in it, on this machine.

With --against, compare it stage by stage with the plain reference run on the checkpoint it was made from (on a
workstation, with edge_sdk[export]). Narrower weights are compared twice: with the reference in the same arithmetic,
which the bundle must equal, and with fp32, which tells what they cost; a second table has the error of each weight.
"""

from __future__ import annotations

import argparse
from typing import Any

from edge_sdk.commands.output import print_json, print_table
from edge_sdk.errors import ExportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--against", metavar="CHECKPOINT_DIR", help="compare with this checkpoint")
    parser.add_argument("--vocoder", metavar="VOCODER_DIR", help="compare with this vocoder folder as well")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.bundle import Bundle

    with Bundle.open(args.bundle) as bundle:
        report: dict[str, Any] = {"bundle": bundle.name, "sha256": bundle.digest, "selftest": bundle.verify()}
        stages, weights = _compare(bundle, args)
    ok = all(line.ok for line in (*stages, *weights))
    if args.json:
        lines = {"stages": [line.to_json() for line in stages], "weights": [line.to_json() for line in weights]}
        print_json({**report, **lines, "ok": ok})
        return 0 if ok else 1
    print(f"{bundle.name}: every file is as the manifest says")
    print_table([[f"self-test {name}", value] for name, value in report["selftest"].items()])
    if stages:
        rows = [
            [s.name, s.against, f"{s.max_abs:.2e}", f"{s.relative:.2e}",
             "" if s.agreement is None else f"{100 * s.agreement:.1f} %", "ok" if s.ok else "DIFFERS"]
            for s in stages
        ]  # fmt: skip
        print_table(rows, ("stage", "weights", "max abs", "relative", "same choice", ""))
    if weights:
        rows = [[w.graph, w.name, w.scheme, f"{w.relative:.2e}", "ok" if w.ok else "DIFFERS"] for w in weights]
        print_table(rows, ("graph", "weight", "stored as", "relative error", ""))
    return 0 if ok else 1


def _compare(bundle: Any, args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Lines of the table of stages, and of that of weights."""
    if not args.against and not args.vocoder:
        return [], []
    try:
        from edge_sdk.export.parity import compare_language
        from edge_sdk.export.parity_vocoder import compare_vocoder
        from edge_sdk.export.parity_weights import compare_language_weights, compare_vocoder_weights
    except ImportError as e:
        raise ExportError(f"--against needs packages that are missing ({e}): pip install 'edge_sdk[export]'") from e
    stages: list[Any] = []
    weights: list[Any] = []
    if args.against:
        stages += compare_language(bundle, args.against)
        weights += compare_language_weights(bundle, args.against)
    if args.vocoder:
        stages += compare_vocoder(bundle, args.vocoder)
        weights += compare_vocoder_weights(bundle, args.vocoder)
    return stages, weights
