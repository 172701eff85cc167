"""The score as text: for the terminal, and in Markdown for the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samples.nano.ship.gates import rate, share
from samples.nano.ship.row import STREAMING, WHOLE

Table = list[list[str]]  # the first row is the head
Row = Mapping[str, Any]
HEAD = ("bundle", "questions", "success", "first", "later", "WER streaming", "WER whole", "answers read")


def rows_table(rows: Sequence[Row]) -> Table:
    """One line for each bundle and condition."""
    return [list(HEAD), *([r["bundle"], r["condition"], *_cells(r)] for r in rows)]


def _cells(row: Row) -> list[str]:
    errors = row["word errors"]
    shares = [counted(row[name]) for name in ("success", "first question", "later questions")]
    return [*shares, *(percent(rate(errors.get(mode))) for mode in (STREAMING, WHOLE)), _read(errors)]


def _read(errors: Mapping[str, Mapping[str, int]]) -> str:
    return str(errors[STREAMING]["replies"]) if STREAMING in errors else "-"


def parts_table(rows: Sequence[Row], part: str) -> Table:
    """Success by task ("tasks"), by kind of turn ("kinds") or by group of recordings ("groups"): a line each, a column
    for each row."""
    names = list(dict.fromkeys(name for row in rows for name in row[part]))
    head = [part, *(f"{r['bundle']}, {r['condition']}" for r in rows)]
    return [head, *([name, *(counted(r[part].get(name)) for r in rows)] for name in names)]


def gates_table(found: Mapping[str, Sequence[Row]]) -> Table:
    head = ["bundle", "gate", "value", "bound", ""]
    return [head, *([kind, *_gate(gate)] for kind, gates in found.items() for gate in gates)]


def _gate(gate: Row) -> list[str]:
    form = _form(gate["bound"])
    sign = "<=" if gate["most"] else ">="
    verdict = "met" if gate["met"] else "not measured" if gate["value"] is None else "missed"
    value = "-" if gate["value"] is None else form(gate["value"])
    return [gate["gate"], value, f"{sign} {form(gate['bound'])}", f"{verdict} (aim)" if gate["aim"] else verdict]


def _form(bound: float) -> Callable[[float], str]:
    if bound > 1e6:
        return lambda v: f"{v / 1e6:.2f} MB"
    return (lambda v: f"{v:.0f}") if bound > 1 else (lambda v: f"{v:.3f}")


def speed_table(found: Mapping[str, Row]) -> Table:
    """A line for each bundle: first sound, real-time factor in all and by stage."""
    spoken = {kind: s for kind, s in found.items() if s.get("replies")}
    stages = list(next(iter(spoken.values()))["rtf_by_stage"]) if spoken else []
    head = ["bundle", "replies", "first sound, ms", "p95", "RTF", *(stage.replace("_", " ") for stage in stages)]
    return [head, *([kind, *_speed(s, stages)] for kind, s in spoken.items())]


def _speed(found: Row, stages: Sequence[str]) -> list[str]:
    first = found["first_sound_ms"]
    cells = [str(found["replies"]), f"{first['p50']:.0f}", f"{first['p95']:.0f}", f"{found['rtf']:.3f}"]
    return [*cells, *(f"{found['rtf_by_stage'][stage]:.3f}" for stage in stages)]


def stages_table(found: Mapping[str, Row]) -> Table:
    """What `evaluate` found: a line for each checkpoint, shares as percent, cross entropy in nats."""
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = [[_share_or_nats(row, column) for column in columns] for row in found.values()]
    return [["checkpoint", *columns], *([name, *line] for name, line in zip(found, lines, strict=True))]


def _share_or_nats(row: Row, column: str) -> str:
    if column not in row:
        return "-"
    return f"{row[column]:.3f}" if column == "nats" else percent(row[column])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def counted(counts: Sequence[int] | None) -> str:
    """[right, asked] as "93.0 % of 200"."""
    return "-" if not counts or not counts[1] else f"{percent(share(counts))} of {counts[1]}"


def plain(table: Table) -> str:
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def markdown(table: Table) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])
