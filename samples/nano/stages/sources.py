"""Rendered questions and encoded replies out of the work folder, as the stages ask for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_sdk.errors import Error
from samples.nano.model.batch import Array
from samples.nano.voices.shards import read_clips

FULL_SCALE = 32768  # of int16


class RenderedSounds:
    """Every question of a split in memory, in 16 bits: 1.1 GB for ten hours.

    Args:
        users: the folder that `python -m samples.nano render` filled.
        codes: of the replies, by text.
        replies: the folder of the rendered replies, where it matters when their words begin.

    Raises:
        Error: nothing was rendered, or nothing of this split.
    """

    def __init__(self, users: Path, split: str, codes: Mapping[str, Array], replies: Path | None = None) -> None:
        self.codes = codes
        told = read_clips(replies, check=False) if replies else ()
        self.starts = {clip.text: clip.spoken.word_starts_s for clip in told}
        self.clips: dict[str, list[Array]] = defaultdict(list)
        for clip in read_clips(users):
            if clip.asked["split"] == split:
                self.clips[clip.text].append(np.rint(clip.spoken.pcm * FULL_SCALE).astype(np.int16))
        self.takes = max(map(len, self.clips.values()), default=0)
        if not self.takes:
            raise Error(f"'{users}' has no question of the split {split}: run python -m samples.nano render first")

    def question(self, text: str, take: int) -> Array | None:
        found = self.clips.get(text)
        if not found:
            return None
        pcm: Array = found[take % len(found)].astype(np.float32) / FULL_SCALE
        return pcm

    def reply(self, text: str) -> Array | None:
        return self.codes.get(text)

    def starts_s(self, text: str) -> Sequence[float]:
        return self.starts.get(text, ())
