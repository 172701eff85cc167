"""From logits to an id: upstream's score processors in upstream's order, and seeded draws.

Scores are float32 copies of the last position's logits. With sampling the order is repetition penalty, bad words,
temperature, top-k, top-p; without it only the first two act and the largest score wins. Draws come from Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by the seed and counted by
(turn, step, sub-step, 0), so that NumPy, C++ and CUDA make the same numbers and a reply can be made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import Error
from edge_sdk.runtime import Array

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_FIRST_CANDIDATES = 128


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words for a 64-bit key and a 128-bit counter of four 32-bit words."""
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    c0, c1, c2, c3 = (c & _MASK for c in counter)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, turn: int, step: int, sub_step: int) -> float:
    """One number in [0, 1) with 24 bits, exact in float32. Sub-steps 0..G-1 are speech picks, G is the text pick."""
    return (philox(seed, (turn, step, sub_step, 0))[0] >> 8) * 2.0**-24


class History:
    """The distinct ids a repetition penalty applies to. Adding is O(1); a group's picks can be taken back."""

    def __init__(self, vocab_size: int, ids: Iterable[int] = ()) -> None:
        self._seen = np.zeros(vocab_size, bool)
        self._distinct = np.empty(vocab_size, np.int64)
        self._count = 0
        for i in ids:
            self.add(i)

    def add(self, token: int) -> None:
        if not self._seen[token]:
            self._seen[token] = True
            self._distinct[self._count] = token
            self._count += 1

    def mark(self) -> int:
        return self._count

    def rewind(self, mark: int) -> None:
        """Forget what was added since `mark()` returned this."""
        self._seen[self._distinct[mark : self._count]] = False
        self._count = mark

    @property
    def seen(self) -> Array:
        """uint8 [vocab], 1 for the ids in the history: a view that follows it."""
        return self._seen.view(np.uint8)

    @property
    def distinct(self) -> Array:
        return self._distinct[: self._count]


@dataclass(frozen=True)
class Sampling:
    """How scores become an id. The defaults pick the largest score and nothing else."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def process(self, logits: Array, history: History, recent: Sequence[int] = ()) -> Array:
        """Scores after every active processor; removed ids are -inf.

        Args:
            logits: float32 [vocab], not changed.
            history: ids the repetition penalty applies to.
            recent: the latest ids of the sequence, for bad words of more than one id.
        """
        scores = logits.copy()
        if self.repetition_penalty != 1.0:
            penalize(scores, history.distinct, self.repetition_penalty)
        for word in self.bad_words:
            prefix, last = word[:-1], word[-1]
            if not prefix or tuple(recent[-len(prefix) :]) == prefix:
                scores[last] = -np.inf
        if self.do_sample:
            if self.temperature != 1.0:
                scores /= np.float32(self.temperature)
            if self.top_k:
                keep_top_k(scores, self.top_k)
            if self.top_p < 1.0:
                keep_top_p(scores, float(np.float32(self.top_p)))  # as the native kernels hold it
        return scores

    def pick(self, logits: Array, history: History, number: float, recent: Sequence[int] = ()) -> int:
        """The chosen id; `number` in [0, 1) decides a draw and is unused without sampling.

        A draw walks the kept ids in ascending order and takes the first whose cumulated probability, in float64,
        exceeds number * total.
        """
        scores = self.process(logits, history, recent)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise Error(
                "no id can be picked: the model's scores are not finite, or bad_words forbids every id that is left"
            )
        if not self.do_sample:
            return best
        kept = np.flatnonzero(scores > -np.inf)
        weights = np.exp(scores[kept].astype(np.float64) - float(scores[best]))
        cumulated = np.cumsum(weights)
        return int(kept[min(np.searchsorted(cumulated, number * cumulated[-1], side="right"), len(kept) - 1)])


def penalize(scores: Array, ids: Array, penalty: float) -> None:
    """Divide positive, multiply negative scores of `ids` by the penalty, once per distinct id (CTRL, Keskar 2019)."""
    chosen = scores[ids]
    factor = np.float32(penalty)
    scores[ids] = np.where(chosen < 0, chosen * factor, chosen / factor)


def keep_top_k(scores: Array, k: int) -> None:
    """Set everything below the k-th largest score to -inf; ties with it stay, as upstream's."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        scores[scores < threshold] = -np.inf


def keep_top_p(scores: Array, p: float) -> None:
    """Keep the smallest set of likeliest ids whose probabilities reach p, at least one.

    Upstream sorts ascending and removes while the running sum is at most 1 - p: an id stays exactly if the ids above
    it sum to less than p. So only the likeliest few need sorting.
    """
    top = float(scores.max())
    probabilities = np.exp(scores - np.float32(top))
    total = float(probabilities.sum(dtype=np.float64))
    count = _FIRST_CANDIDATES
    while True:
        count = min(count, len(scores))
        candidates = np.argpartition(probabilities, len(scores) - count)[len(scores) - count :]
        order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
        cumulated = np.cumsum(probabilities[order], dtype=np.float64)
        if cumulated[-1] >= p * total or count == len(scores):
            break
        count *= 8
    above = np.concatenate(([0.0], cumulated[:-1]))
    kept = order[above < p * total]
    if not len(kept):
        kept = order[:1]
    values = scores[kept].copy()
    scores.fill(-np.inf)
    scores[kept] = values
