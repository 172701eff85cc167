"""Each fold against the arithmetic it replaces, in float64, on random shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.export import fold
from tests import tolerances

Array = np.ndarray[Any, Any]
SIZE = st.integers(1, 12)
SEED = st.integers(0, 2**32 - 1)


def draw(rng: Any, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape), np.float32)


def same(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerances.LANGUAGE_FOLD, atol=tolerances.LANGUAGE_FOLD)


@settings(max_examples=60, deadline=None)
@given(SEED, SIZE, SIZE, SIZE)
def test_matmul_is_a_float64_product_rounded_once(seed: int, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = draw(rng, m, k), draw(rng, k, n)
    found = fold.matmul(a, b)
    assert found.dtype == np.float32
    for i, row in enumerate(a):
        for j, column in enumerate(b.T):
            terms = [float(x) * float(y) for x, y in zip(row, column, strict=True)]
            last_place = float(np.spacing(np.abs(found[i, j])))
            assert abs(found[i, j] - math.fsum(terms)) <= last_place + math.ulp(1) * math.fsum(map(abs, terms))


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 3000])
def test_matmul_in_blocks(rows: int) -> None:
    rng = np.random.default_rng(rows)
    a, b = draw(rng, rows, 3), draw(rng, 3, 2)
    assert np.array_equal(fold.matmul(a, b), (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(SEED, SIZE, SIZE, SIZE, st.integers(1, 7), st.integers(0, 7))
def test_audio_projection(seed: int, hidden: int, middle: int, d_model: int, group: int, filler: int) -> None:
    """proj, mean over a group whose filler rows are zero after proj, grouping linear = one product after the mean,
    the bias by the share of real rows."""
    rng, filler = np.random.default_rng(seed), min(filler, group)
    x = draw(rng, group - filler, d_model).astype(np.float64)
    grouping, proj, bias = draw(rng, hidden, middle), draw(rng, middle, d_model), draw(rng, middle)
    rows = np.concatenate([x @ proj.T.astype(np.float64) + bias, np.zeros((filler, middle))])
    weight, offset = fold.audio_projection(grouping, proj, bias)
    mean = np.concatenate([x, np.zeros((filler, d_model))]).mean(axis=0)
    same(weight @ mean + offset * (group - filler) / group, grouping @ rows.mean(axis=0))


@settings(max_examples=60, deadline=None)
@given(SEED, SIZE, SIZE, st.integers(1, 7), st.integers(1, 4))
def test_speech_input(seed: int, hidden: int, width: int, group: int, rows: int) -> None:
    """pre_matching opens G positions, input_matching narrows each; the folded rows come in the same order."""
    rng = np.random.default_rng(seed)
    pre, bias, matching = draw(rng, group * hidden, hidden), draw(rng, group * hidden), draw(rng, width, hidden)
    x = draw(rng, rows, hidden).astype(np.float64)
    expected = (x @ pre.T + bias).reshape(rows * group, hidden) @ matching.T
    weight, offset = fold.speech_input(pre, bias, matching)
    assert weight.shape == (group * width, hidden)
    assert offset.shape == (group * width,)
    same((x @ weight.T + offset).reshape(rows * group, width), expected)


@settings(max_examples=60, deadline=None)
@given(SEED, SIZE, SIZE, SIZE, st.integers(1, 7))
def test_the_tables(seed: int, codes: int, hidden: int, width: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    codebook = draw(rng, codes, hidden)
    wide = codebook.astype(np.float64)
    narrow, widen, square = draw(rng, width, hidden), draw(rng, hidden, width), draw(rng, hidden, hidden)

    # A position joined by the token before it, then input_matching: the sum may be taken behind it.
    position = draw(rng, 3, hidden).astype(np.float64)
    ids = rng.integers(0, codes, 3)
    joined = (position + wide[ids]) @ narrow.T
    same(position @ narrow.T + fold.speech_input_table(codebook, narrow)[ids], joined)

    # output_matching, then the codebook as output layer.
    y = draw(rng, 3, width).astype(np.float64)
    same(y @ fold.speech_output_table(codebook, widen).T.astype(np.float64), (y @ widen.T) @ wide.T)

    # The mean over a group, then output_matching: a sum of table rows.
    ids = rng.integers(0, codes, (4, group))
    table = fold.group_table(codebook, square, group)
    same(table[ids].astype(np.float64).sum(axis=1), wide[ids].mean(axis=1) @ square.T)


def test_a_fold_holds_one_float64_block_at_a_time() -> None:
    """The long operand is never widened whole: a codebook or an embedding is the largest tensor there is."""
    import tracemalloc

    a, b = np.ones((200_000, 16), np.float32), np.ones((16, 16), np.float32)
    tracemalloc.start()
    out = fold.matmul(a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < out.nbytes + 1_000_000
