"""Makes a scored bundle the default of the package: the file that was measured, with its model card, if it may be.

Refused unless every gate of WORK/score/score.json is met for it (--force ships all the same, and the card says so).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sdk.bundle import Bundle
from edge_sdk.errors import Error
from edge_sdk.files import write_file
from samples.nano.ship import bundles
from samples.nano.ship.card import NAME, card, read_score
from samples.nano.voices.packages import file_sha256

DATA = Path(__file__).resolve().parents[3] / "edge_sdk" / "data"
TARGET = DATA / "default.bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", choices=tuple(bundles.KINDS), required=True, help="which of the scored bundles")
    parser.add_argument("--target", type=Path, default=TARGET, help="default: the bundle inside the package")
    parser.add_argument("--force", action="store_true", help="ship it though a gate is missed")


def run(options: argparse.Namespace) -> int:
    score = read_score(options.work)
    text = card(score, options.bundle)
    source = options.work / bundles.FOLDER / f"{options.bundle}.bundle"
    check_is_scored(source, score["bundles"][options.bundle])
    missed = missed_gates(score, options.bundle)
    if missed and not options.force:
        raise Error(f"'{options.bundle}' stays where it is: {'; '.join(missed)} (--force ships it all the same)")
    with Bundle.open(source) as bundle:
        bundle.verify()
    if options.target.is_dir():
        raise Error(f"'{options.target}' is a folder; give the file to write")
    part = options.target.with_name(f".{options.target.name}.part")
    shutil.copyfile(source, part)
    part.replace(options.target)
    write_file(options.target.with_name(NAME), text.encode())
    print(f"wrote {options.target}, {options.target.stat().st_size / 1e6:.2f} MB, and {NAME} beside it")
    for gate in missed:
        print(f"shipped though {gate}")
    return 0


def check_is_scored(path: Path, record: Mapping[str, Any]) -> None:
    """The file is the one that was measured.

    Raises:
        Error: it is not there, or another.
    """
    if not path.is_file() or file_sha256(path) != record["sha256"]:
        raise Error(f"'{path}' is not the bundle that was scored: run python -m samples.nano score again")


def missed_gates(score: Mapping[str, Any], kind: str) -> list[str]:
    """What keeps a bundle from being shipped, in words; aims do not."""
    return [_told(gate) for gate in score["gates"][kind] if not gate["met"] and not gate["aim"]]


def _told(gate: Mapping[str, Any]) -> str:
    if gate["value"] is None:
        return f"{gate['gate']} was not measured"
    return f"{gate['gate']} is {gate['value']:.4g}, {'at most' if gate['most'] else 'at least'} {gate['bound']:.4g}"
