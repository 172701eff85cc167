"""Pitch moved with the formants left where they are: pitch-synchronous overlap-add (PSOLA) along its curve."""

from __future__ import annotations

import numpy as np

from samples.nano.voices.rooms import Array

_VOICED_HZ = 40.0
_UNVOICED_PERIOD_S = 0.005
_SEARCH = 0.25  # of a period: how far a mark may move to the loudest sample near it
_LEAST_WEIGHT = 0.25  # of summed windows, below which they are not made up for


def shifted(pcm: Array, rate: int, f0: Array, f0_rate: int, factor: float) -> Array:
    """`pcm`, float32 [n], with its pitch times `factor`; as long as before.

    Args:
        f0: Hz, float32 [F] at `f0_rate` values a second, below 40 where unvoiced.
    """
    marks = _marks(pcm, rate, f0, f0_rate)
    if factor == 1.0 or len(marks) < 3:
        return pcm
    out, weight = np.zeros(len(pcm)), np.zeros(len(pcm))
    at = float(marks[0][0])
    places = np.array([place for place, _, _ in marks])
    while at < len(pcm):
        place, period, voiced = marks[int(np.abs(places - at).argmin())]
        _add(out, weight, pcm, place, round(at), period)
        at += period / factor if voiced else period
    return (out / np.maximum(weight, _LEAST_WEIGHT)).astype(np.float32)


def _marks(pcm: Array, rate: int, f0: Array, f0_rate: int) -> list[tuple[int, int, bool]]:
    """(sample, period in samples, voiced): one a period, on its loudest sample, so that grains are alike."""
    found, at = [], 0
    while at < len(pcm):
        hz = float(f0[min(at * f0_rate // rate, len(f0) - 1)])
        voiced = hz > _VOICED_HZ
        period = round(rate / hz if voiced else rate * _UNVOICED_PERIOD_S)
        place = at
        if voiced:
            reach = int(_SEARCH * period)
            first = max(0, at - reach)
            place = first + int(pcm[first : at + reach + 1].argmax())
        if not found or place > found[-1][0]:
            found.append((place, period, voiced))
        at = max(place, at - period // 2) + period
    return found


def _add(out: Array, weight: Array, pcm: Array, source: int, target: int, period: int) -> None:
    """A Hann window of two periods around `source`, added around `target`."""
    first = max(-period, -source, -target)
    last = min(period, len(pcm) - source, len(out) - target)
    if last <= first:
        return
    window = 0.5 + 0.5 * np.cos(np.pi * np.arange(first, last) / period)
    out[target + first : target + last] += window * pcm[source + first : source + last]
    weight[target + first : target + last] += window
