"""Rendered questions and encoded replies out of the work folder, as the stages ask for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edge_sdk.errors import Error
from samples.nano.model.batch import Array
from samples.nano.voices.shards import Shard, read_shards

FULL_SCALE = 32768  # of int16


class RenderedSounds:
    """Every question of a split. A shard's are decoded when one of them is first asked for, and stay in memory, in 16
    bits: 1.1 GB for ten hours. A stage that takes what the encoder made of them before (`hear`) asks for none.

    Args:
        users: the folder that `python -m samples.nano render` filled.
        codes: of the replies, by text.
        replies: the folder of the rendered replies, where it matters when their words begin.

    Raises:
        Error: nothing was rendered, a file is damaged, or there is nothing of this split.
    """

    def __init__(self, users: Path, split: str, codes: Mapping[str, Array], replies: Path | None = None) -> None:
        self.codes = codes
        said = (clip for shard in read_shards(replies, check=False) for clip in shard.told) if replies else ()
        self.starts = {clip["job"]["text"]: tuple(clip["word_starts_s"]) for clip in said}
        self.clips: dict[str, list[StoredClip]] = defaultdict(list)
        for shard in read_shards(users):
            decoded = _Decoded(shard)
            for number, clip in enumerate(shard.told):
                if clip["job"]["split"] == split:
                    self.clips[clip["job"]["text"]].append(StoredClip(decoded, number, clip["samples"]))
        self.takes = max(map(len, self.clips.values()), default=0)
        if not self.takes:
            raise Error(f"'{users}' has no question of the split {split}: run python -m samples.nano render first")

    def question(self, text: str, take: int) -> Array | None:
        found = self.clips.get(text)
        if not found:
            return None
        pcm: Array = found[take % len(found)].pcm.astype(np.float32) / FULL_SCALE
        return pcm

    def reply(self, text: str) -> Array | None:
        return self.codes.get(text)

    def starts_s(self, text: str) -> Sequence[float]:
        return self.starts.get(text, ())


@dataclass(frozen=True, eq=False)
class StoredClip:
    """One clip of a shard; its length, in samples, is known without decoding it."""

    decoded: _Decoded
    number: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    @property
    def pcm(self) -> Array:
        """int16 [samples]."""
        return self.decoded.pcm[self.number]


class _Decoded:
    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    @cached_property
    def pcm(self) -> list[Array]:
        return [np.rint(clip.spoken.pcm * FULL_SCALE).astype(np.int16) for clip in self.shard.clips()]
