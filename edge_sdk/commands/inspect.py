"""Show what is in a bundle: its model, graphs, voices, files, and the memory a conversation takes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from edge_sdk.commands.output import human_bytes, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="path; without it the bundle of the package")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.bundle import Bundle

    with Bundle.open(args.bundle) as bundle:
        manifest = bundle.manifest
        if args.json:
            print_json(manifest.to_json())
            return 0
        print(f"{bundle.name} (format {manifest.format_version}, {bundle.digest[:12]}) at {bundle.path}")
        for note in manifest.notes:
            print(note)
        print_table([[name, _short(value)] for name, value in _summary(manifest)])
        print_table(
            [
                [
                    key,
                    graph.precision,
                    human_bytes(manifest.files[graph.data].size if graph.data else 0),
                    len(graph.ops),
                ]
                for key, graph in manifest.graphs.items()
            ],
            ("graph", "precision", "weights", "ops"),
        )
    return 0


def _summary(manifest: Any) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    model, vocoder = manifest.model, manifest.vocoder
    if model:
        rows += [
            ("group size", f"{model.group_size} speech tokens a step, {model.step_ms:.0f} ms"),
            ("encoder", dataclasses.asdict(model.encoder)),
            ("backbone", dataclasses.asdict(model.backbone)),
            ("speech head", dataclasses.asdict(model.speech_head) if model.speech_head else "none: text only"),
            ("cache", _cache_line(model)),
        ]
    if vocoder:
        rows += [
            ("vocoder", f"{vocoder.flow.depth} x {vocoder.flow.dim} flow, {vocoder.waveform.sample_rate} Hz"),
            ("voices", ", ".join(vocoder.voices) or "none"),
            ("flow steps", ", ".join(map(str, vocoder.flow.steps))),
        ]
    rows += [("source", manifest.source), ("made with", manifest.tools)]
    rows.append(("size", human_bytes(sum(entry.size for entry in manifest.files.values()))))
    return rows


def _cache_line(model: Any) -> str:
    values = model.backbone.cache_values_per_position
    if model.speech_head:
        values += model.group_size * model.speech_head.cache_values_per_position
    return f"{human_bytes(4 * values)} a position, {human_bytes(4 * values * 2048)} for 2048 positions"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
    return str(value)
