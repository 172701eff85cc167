"""What a caller hands to the vocoder, checked: every message says what was wrong and what is expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge_sdk.checks import check_number
from edge_sdk.config import FlowConfig
from edge_sdk.errors import Error
from edge_sdk.flow import chunk_tokens
from edge_sdk.runtime import Array


def check_ids(ids: Any, codebook_size: int) -> Array:
    """Speech tokens from outside as int64 [T]."""
    array = _as_array("speech tokens", ids)
    if array.size == 0 and array.ndim <= 1:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise Error(f"speech tokens must be a sequence of whole numbers, found {array.dtype}{list(array.shape)}")
    bad = (array < 0) | (array >= codebook_size)
    if bad.any():
        at = int(np.argmax(bad))
        raise Error(
            f"speech token {int(array[at])} at position {at} is not in the codebook of {codebook_size}; "
            "leave control ids out before the vocoder"
        )
    return array.astype(np.int64)


def check_speaker(embedding: Any, dim: int) -> Array:
    array = _as_array("speaker embeddings", embedding)
    if array.shape != (dim,) or array.dtype.kind != "f":
        raise Error(f"a speaker embedding must be float [{dim}], found {array.dtype}{list(array.shape)}")
    # The embedding is divided by its length, so that must be a number, and not zero.
    values: Array = array.astype(np.float32)
    length = float(np.linalg.norm(values.astype(np.float64)))
    if not math.isfinite(length) or length == 0.0:
        raise Error("a speaker embedding must be finite and not all zero")
    return values


def check_preview(tokens: int, config: FlowConfig) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens < chunk_tokens(config):
        raise Error(f"preview_tokens must be a whole number from 0 to {chunk_tokens(config) - 1}, found {tokens!r}")
    return tokens


def context_frames(context_s: float | None, config: FlowConfig) -> int | None:
    if context_s is None:
        return None
    seconds = check_number("context_s", context_s)
    if seconds < 0:
        raise Error(f"context_s must not be negative, found {context_s!r}")
    # More than the noise lasts for is never filled: caches restart behind it.
    return round(min(seconds * config.frame_rate_hz, config.noise_frames))


def _as_array(what: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        raise Error(f"{what} of type {type(value).__name__} do not become an array: {e}") from e
