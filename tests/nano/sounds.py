"""Sound for dialogues where none was rendered: to the language half codes are ids, and these are seeded random ones."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

RATE_HZ = 16000


class SeededSounds:
    """A question is a tone of a pitch and length that its text tells; another take has another noise.
    A reply is random codes.
    """

    def __init__(self, count: int, codes: int | None = None) -> None:
        self.count, self.length = count, codes

    takes = 3

    def question(self, text: str, take: int) -> Any:
        seed = zlib.crc32(text.encode())
        random = np.random.default_rng(seed)
        samples = int(RATE_HZ * random.uniform(0.5, 1.5))
        tone = np.sin(2 * np.pi * random.uniform(200, 2000) * np.arange(samples) / RATE_HZ)
        noise = np.random.default_rng([seed, take]).standard_normal(samples)
        return (0.2 * tone + 0.02 * noise).astype(np.float32)

    def reply(self, text: str) -> Any:
        random = np.random.default_rng(zlib.crc32(text.encode()))
        length = self.length or 2 + 2 * len(text)
        return random.integers(0, self.count, length)

    def starts_s(self, text: str) -> Any:
        """A word every 0.7 s."""
        return [0.7 * n for n in range(len(text.split()))]


class ListedSounds(SeededSounds):
    """Seeded sounds with the list that rendered ones have."""

    @property
    def clips(self) -> dict[str, list[Any]]:
        return {text: [self.question(text, take) for take in range(2)] for text in ("on", "off", "what time is it")}
