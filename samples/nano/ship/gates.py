"""What a bundle must reach to become the default of the package, and what is aimed at beyond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samples.nano.ship.questions import NATURAL
from samples.nano.ship.row import STREAMING, WHOLE

MOST_BYTES = 30_000_000
MOST_WER, AIM_WER = 0.10, 0.05
LEAST_SUCCESS = 0.90
AIM_RTF, AIM_FIRST_SOUND_MS = 0.2, 300.0


@dataclass(frozen=True)
class Gate:
    """A bound.

    Attributes:
        value: None where it was not measured: then it is not met.
        most: whether the bound is the largest value allowed, or the least.
        aim: it is hoped for; shipping does not depend on it.
    """

    name: str
    value: float | None
    bound: float
    most: bool = True
    aim: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.bound if self.most else self.value >= self.bound

    def to_json(self) -> dict[str, Any]:
        told = {"gate": self.name, "value": self.value, "bound": self.bound}
        return {**told, "most": self.most, "aim": self.aim, "met": self.met}


def gates(
    kind: str, made: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], speed: Mapping[str, Any]
) -> list[Gate]:
    """Of one bundle.

    Args:
        made: its record.
        rows: of every bundle and condition; a bundle's own natural row decides.
        speed: what `speed.measure` found for it, or {}.
    """
    row = next((r for r in rows if (r["bundle"], r["condition"]) == (kind, NATURAL)), None)
    return list(_gates(made, row or {}, speed))


def _gates(made: Mapping[str, Any], row: Mapping[str, Any], speed: Mapping[str, Any]) -> Iterator[Gate]:
    yield Gate("task success, held-out speech", share(row.get("success")), LEAST_SUCCESS, most=False)
    wer = {mode: rate(row.get("word errors", {}).get(mode)) for mode in (STREAMING, WHOLE)}
    yield Gate("word errors of replies, streaming vocoder", wer[STREAMING], MOST_WER)
    yield Gate("word errors of replies, whole vocoder", wer[WHOLE], MOST_WER)
    yield Gate("bytes", made.get("bytes"), MOST_BYTES)
    yield Gate("word errors of replies, streaming vocoder", wer[STREAMING], AIM_WER, aim=True)
    yield Gate("real-time factor", speed.get("rtf"), AIM_RTF, aim=True)
    first = speed.get("first_sound_ms", {}).get("p50")
    yield Gate("ms from the end of the question to the first sound", first, AIM_FIRST_SOUND_MS, aim=True)


def share(counts: Sequence[int] | None) -> float | None:
    """[right, asked] -> their quotient; None of none asked."""
    return counts[0] / counts[1] if counts and counts[1] else None


def rate(errors: Mapping[str, int] | None) -> float | None:
    """Word error rate; None where nothing was read."""
    return errors["errors"] / errors["words"] if errors and errors["words"] else None
