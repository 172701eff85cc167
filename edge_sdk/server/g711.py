"""G.711: speech in 8 bits at 8 kHz, mu-law and A-law (ITU-T G.711), by table.

Both laws name eight segments, each twice as coarse as the one before, and sixteen steps in each.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

RATE_HZ = 8000
LAWS = ("ulaw", "alaw")
_MU_BIAS = 132  # of mu-law, at 16 bit: makes the segments' borders powers of two
_MU_CLIP = 8158  # at 14 bit: the largest that the last segment holds

Array = np.ndarray[Any, Any]


@functools.cache
def _decoded(law: str) -> Array:
    """int16 [256]: the sample of every byte."""
    codes = np.arange(256)
    codes = codes ^ (0xFF if law == "ulaw" else 0x55)
    segment, step = codes >> 4 & 7, codes & 15
    if law == "ulaw":
        size = ((step << 3) + _MU_BIAS << segment) - _MU_BIAS
        negative = codes & 0x80 != 0
    else:
        size = np.where(segment == 0, (step << 4) + 8, (step << 4) + 0x108 << np.maximum(segment - 1, 0))
        negative = codes & 0x80 == 0
    decoded: Array = np.where(negative, -size, size).astype(np.int16)
    return decoded


@functools.cache
def _encoded(law: str) -> Array:
    """uint8 [65536]: the byte of every sample, found at sample + 32768."""
    samples = np.arange(-32768, 32768)
    if law == "ulaw":
        sign = np.where(samples < 0, 0x80, 0)
        size = np.minimum(np.abs(samples >> 2), _MU_CLIP) + (_MU_BIAS >> 2)  # the standard's samples have 14 bits
        segment = np.floor(np.log2(size)).astype(np.int64) - 5
        code = sign | segment << 4 | size >> segment + 1 & 15
        return np.asarray(~code & 0xFF, np.uint8)
    sign = np.where(samples >= 0, 0x80, 0)
    size = np.where(samples >= 0, samples, -samples - 1)  # the standard's negative side begins one lower
    segment = np.maximum(np.floor(np.log2(np.maximum(size, 1))).astype(np.int64) - 7, 0)
    step = np.where(segment == 0, size >> 4, size >> np.maximum(segment + 3, 4)) & 15
    return np.asarray((sign | segment << 4 | step) ^ 0x55, np.uint8)


def decode(data: bytes, law: str) -> Array:
    """Bytes of one law ("ulaw" or "alaw") -> int16 [n]."""
    samples: Array = _decoded(law)[np.frombuffer(data, np.uint8)]
    return samples


def encode(samples: Array, law: str) -> bytes:
    """int16 [n] -> bytes of one law."""
    return bytes(_encoded(law)[samples.astype(np.int64) + 32768].tobytes())
