"""Exact algebra on the language half's weights: the same numbers with fewer ops (docs/computation.md).

Products are formed in float64 and rounded once to float32, so that a fold is at least as exact as the two products
it replaces. tests/export/test_fold.py holds each to the unfolded arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_ROWS = 1024  # rows of a float64 product held at once


def matmul(a: Array, b: Array) -> Array:
    """a [M, K] @ b [K, N] in float64, block by block, rounded to float32."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    wide = b.astype(np.float64)
    for at in range(0, a.shape[0], _ROWS):
        out[at : at + _ROWS] = a[at : at + _ROWS].astype(np.float64) @ wide
    return out


def audio_projection(group: Array, proj: Array, bias: Array) -> tuple[Array, Array]:
    """Encoder proj, then the grouping's linear: W_g (W_p x + b_p) = (W_g W_p) x + W_g b_p.

    Grouping is a mean, which commutes with both, so one product after the mean serves.

    Args:
        group: continual_output_matching [D, P].  proj: [P, d_model].  bias: [P].
    Returns:
        weight [D, d_model], bias [D].
    """
    return matmul(group, proj), matmul(group, bias[:, None])[:, 0]


def speech_input(pre_weight: Array, pre_bias: Array, matching: Array) -> tuple[Array, Array]:
    """pre_matching, split in group_size positions, then input_matching on each.

    Args:
        pre_weight: [G*D, D].  pre_bias: [G*D].  matching: [W, D].
    Returns:
        weight [G*W, D], bias [G*W]: the rows of position j are at j*W.
    """
    width, hidden = matching.shape
    groups = pre_weight.shape[0] // hidden
    weight = np.empty((groups * width, hidden), np.float32)
    for j in range(groups):
        weight[j * width : (j + 1) * width] = matmul(matching, pre_weight[j * hidden : (j + 1) * hidden])
    bias = matmul(pre_bias.reshape(groups, hidden), matching.T)
    return weight, bias.reshape(-1)


def speech_input_table(codebook: Array, matching: Array) -> Array:
    """Embedding of a speech token, then input_matching: a table [codes, W]."""
    return matmul(codebook, matching.T)


def speech_output_table(codebook: Array, matching: Array) -> Array:
    """output_matching, then the codebook as output layer: logits = E (M y) = (E M) y, a table [codes, W]."""
    return matmul(codebook, matching)


def group_table(codebook: Array, matching: Array, group_size: int) -> Array:
    """Mean of G embeddings, then output_matching = a sum of G rows of this table [codes, D]."""
    return matmul(codebook, matching.T / np.float64(group_size))
