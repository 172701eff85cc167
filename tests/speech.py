"""Recorded speech for tests of listening, and silence and noise to put it into.

tests/audio/speech has what tests and tuning use (NAMES), tests/audio/held_out what nothing was tuned with.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.audio import load_audio

FOLDER = Path(__file__).parent / "audio" / "speech"
HELD_OUT = FOLDER.parent / "held_out"
RATE = 16000
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.flac")))


@lru_cache
def clip(name: str) -> Any:
    """float32 [n] at 16 kHz."""
    pcm = load_audio((FOLDER if name in NAMES else HELD_OUT) / f"{name}.flac")
    pcm.flags.writeable = False
    return pcm


def silence(seconds: float) -> Any:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds: float, level_db: float = -60.0, seed: int = 0) -> Any:
    """White noise of this RMS level, dBFS."""
    values = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (values * 10 ** (level_db / 20)).astype(np.float32)


def scene(*parts: Any) -> Any:
    """Names of clips, arrays, and numbers (seconds of silence), one after another: float32 [n]."""
    return np.concatenate(
        [silence(p) if isinstance(p, (int, float)) else clip(p) if isinstance(p, str) else p for p in parts]
    )


def pieces(pcm: Any, cuts: Any) -> list[Any]:
    """`pcm` cut at these samples, in any order."""
    return np.split(pcm, sorted(min(cut, len(pcm)) for cut in cuts))
