"""Random numbers against published vectors; processors against plain statements of what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import Error
from edge_sdk.sampling import History, Sampling, keep_top_k, keep_top_p, penalize, philox, uniform

# Known answers of Philox4x32-10, from the kat_vectors file of the Random123 distribution.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter: Any, key: int, expected: Any) -> None:
    assert philox(key, counter) == expected


def test_uniform_is_uniform_and_depends_on_every_part() -> None:
    numbers = np.array([uniform(7, 0, step, sub) for step in range(2000) for sub in range(5)])
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, one in a thousand
    base = uniform(7, 1, 2, 3)
    assert base not in (uniform(8, 1, 2, 3), uniform(7, 2, 2, 3), uniform(7, 1, 3, 3), uniform(7, 1, 2, 4))
    assert base == np.float32(base)


scores_of = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=400).map(lambda v: np.array(v, np.float32))


@given(scores_of, st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_likely_set(scores: Any, p: float) -> None:
    kept = scores.copy()
    keep_top_p(kept, p)
    order = np.argsort(-scores, kind="stable")
    probability = np.exp(scores.astype(np.float64) - scores.max())
    probability /= probability.sum()
    above = np.cumsum(probability[order]) - probability[order]
    n = int((kept > -np.inf).sum())
    assert n >= 1
    assert set(np.flatnonzero(kept > -np.inf)) == set(order[:n]) or len(set(scores[order[:n]])) < n + 1
    slack = 1e-5  # float32 probabilities: an id on the very edge may fall to either side
    assert above[n - 1] < p + slack
    assert n == len(scores) or above[n] >= p - slack
    assert np.array_equal(kept[kept > -np.inf], scores[kept > -np.inf])


def test_top_p_of_a_flat_large_vocabulary() -> None:
    """More candidates than the first guess must be looked at."""
    scores = np.zeros(20000, np.float32)
    scores[::2] -= 1
    kept = scores.copy()
    keep_top_p(kept, 0.9)
    mass = np.exp(scores.astype(np.float64))
    share = mass[kept > -np.inf].sum() / mass.sum()
    assert 0.9 <= share < 0.9002


@given(scores_of, st.integers(1, 50))
def test_top_k_keeps_the_k_largest_and_ties(scores: Any, k: int) -> None:
    kept = scores.copy()
    keep_top_k(kept, k)
    threshold = np.sort(scores)[::-1][min(k, len(scores)) - 1]
    assert np.array_equal(kept > -np.inf, scores >= threshold)


@given(scores_of, st.lists(st.integers(0, 399)), st.floats(0.5, 3))
def test_penalty_counts_every_id_once(scores: Any, ids: list[int], penalty: float) -> None:
    ids = [i % len(scores) for i in ids]
    history = History(len(scores), ids)
    out = scores.copy()
    penalize(out, history.distinct, penalty)
    for i, (before, after) in enumerate(zip(scores, out, strict=True)):
        factor = np.float32(penalty)
        expected = before if i not in ids else before * factor if before < 0 else before / factor
        assert after == expected


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_history_rewinds(first: list[int], second: list[int]) -> None:
    history = History(21, first)
    mark = history.mark()
    for i in second:
        history.add(i)
    assert set(history.distinct) == {*first, *second}
    history.rewind(mark)
    assert set(history.distinct) == set(first)
    history.add(20)
    assert set(history.distinct) == {*first, 20}


def test_bad_words_need_their_beginning() -> None:
    sampling = Sampling(bad_words=((3,), (1, 2)))
    logits, history = np.arange(5, dtype=np.float32), History(5)
    assert sampling.process(logits, history, [0])[[2, 3]].tolist() == [2.0, -np.inf]
    assert sampling.process(logits, history, [0, 1])[[2, 3]].tolist() == [-np.inf, -np.inf]
    assert sampling.process(logits, history, [])[2] == 2.0


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(do_sample=True, temperature=1.5, top_p=0.95)
    logits, history = np.array([2.0, 1.0, 0.0, -1.0, -9.0], np.float32), History(5)
    kept = sampling.process(logits, history)
    expected = np.where(kept > -np.inf, np.exp(kept), 0)
    expected /= expected.sum()
    draws = [sampling.pick(logits, history, uniform(1, 0, n, 0)) for n in range(20000)]
    found = np.bincount(draws, minlength=5) / len(draws)
    assert found[expected == 0].sum() == 0
    assert np.abs(found - expected).max() < 0.015


def test_a_draw_at_either_end_is_a_kept_id() -> None:
    sampling = Sampling(do_sample=True, top_k=2)
    logits, history = np.array([0.0, 5.0, 5.0, 1.0], np.float32), History(4)
    assert sampling.pick(logits, history, 0.0) == 1
    assert sampling.pick(logits, history, 1 - 2.0**-24) == 2


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 0.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_that_are_not_finite_are_an_error(logits: Any, do_sample: bool) -> None:
    with pytest.raises(Error, match="not finite"):
        Sampling(do_sample=do_sample).pick(np.array(logits, np.float32), History(2), 0.5)
