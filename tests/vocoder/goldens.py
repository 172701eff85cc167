"""The reference's recordings of the vocoder, and how to compare with those of which every n-th value is kept."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[1] / "golden" / "vocoder"
TINY = HERE / "tiny"
VOICE = HERE / "zh_female.npy"

Array = np.ndarray[Any, Any]


@lru_cache
def index() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
    return found


@lru_cache
def arrays(case: str) -> dict[str, Array]:
    with np.load(HERE / f"{case}.npz") as file:
        return {name: file[name] for name in file.files}


def tokens(case: str) -> Array:
    return arrays(case)["tokens"].astype(np.int64)


def difference(case: str, name: str, found: Array) -> float:
    """Largest difference to a golden array; every n-th value of `found` where only those were kept."""
    stride = index()["strides"].get(case, {}).get(name, 1)
    expected = arrays(case)[name]
    kept = np.asarray(found)[..., ::stride]
    assert kept.shape == expected.shape, (name, kept.shape, expected.shape)
    return float(np.abs(kept.astype(np.float64) - expected).max())


def relative(case: str, name: str, found: Array) -> float:
    """The same, over the size of the golden array's values."""
    scale = float(np.sqrt((arrays(case)[name].astype(np.float64) ** 2).mean()))
    return difference(case, name, found) / scale


def voice() -> Array:
    array: Array = np.load(VOICE)
    return array
