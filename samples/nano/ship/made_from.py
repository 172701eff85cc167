"""What a checkpoint was made from, as the recipe's commands left it behind: texts, clips, steps, merges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sdk.export.merge import RECORD
from samples.nano.codec.folders import CODEC, FLOW, WAVEFORM
from samples.nano.ship.bundles import STAGES, read_record
from samples.nano.training_state import STATE

_RUN = ("steps", "learning_rate", "seed")


def made_from(work: Path, checkpoint: Path) -> dict[str, Any]:
    """JSON: `texts` (statistics of the grammar's output), `speech` (clips, programs and seeds of what was rendered),
    `training` (steps and learning rate of each run), `stages` (what `evaluate` found of each checkpoint), `merge` (what
    was merged). What is not there is left out."""
    found = {
        "checkpoint": checkpoint.name,
        "texts": read_record(work / "texts" / "statistics.json"),
        "speech": {name: told for name in ("replies", "users") if (told := _speech(work / "speech" / name))},
        "training": {name: run for name, folder in _runs(work).items() if (run := _run(folder))},
        "stages": read_record(work / "evaluation.json"),
        "merge": next((r for n in STAGES if (r := read_record(work / n / RECORD))), {}),
    }
    return {name: value for name, value in found.items() if value}


def _speech(folder: Path) -> dict[str, Any]:
    told = read_record(folder / "manifest.json")
    return {key: told[key] for key in ("version", "clips", "recipe") if key in told}


def _runs(work: Path) -> Mapping[str, Path]:
    codec = {name: work / name / "run" for name in (CODEC, FLOW, WAVEFORM)}
    return codec | {name: work / f"{name}.training" for name in reversed(STAGES)}


def _run(folder: Path) -> dict[str, Any]:
    state = read_record(folder / STATE)
    return {"step": state["step"], **{k: v for k, v in state["run"].items() if k in _RUN}} if "step" in state else {}
