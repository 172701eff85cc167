"""Speech codes on disk, found by the reply's text: shards of codes with the hash of the tokenizer that made them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import Error
from samples.nano.codec.speech import Utterance

SHARD_REPLIES = 256
Array = np.ndarray[Any, Any]


class CodeStore:
    """The shards of one folder, of one tokenizer (its hash)."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def path(self, shard: int) -> Path:
        return self.folder / f"codes-{shard:05}.npz"

    def fill(
        self, replies: Iterable[Utterance], encode: Callable[[Utterance], Array], more: Callable[[], bool]
    ) -> bool:
        """Encode the replies in their order, shard by shard, while `more()`; a shard of the same replies and the same
        tokenizer stays. Returns whether all are encoded."""
        self.folder.mkdir(parents=True, exist_ok=True)
        coming, shard = iter(replies), 0
        while part := list(islice(coming, SHARD_REPLIES)):
            texts = [u.text for u in part]
            if not (self.path(shard).is_file() and self._told(shard) == (self.tokenizer, texts)):
                if not more():
                    return False
                self._write(shard, texts, [encode(u) for u in part])
            shard += 1
        for left in self.folder.glob("codes-*.npz"):  # of more replies than there are now
            if left >= self.path(shard):
                left.unlink()
        return True

    def _write(self, shard: int, texts: list[str], codes: list[Array]) -> None:
        part = self.path(shard).with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps([self.tokenizer, texts]).encode(), np.uint8),
                codes=np.concatenate(codes).astype(np.uint16),
                tokens=np.array([len(c) for c in codes], np.int64),
            )
        part.replace(self.path(shard))

    def _told(self, shard: int) -> tuple[str, list[str]]:
        tokenizer, texts = json.loads(_read(self.path(shard), "about")["about"].tobytes())
        return tokenizer, texts

    def read(self) -> dict[str, Array]:
        """Every reply's codes, text -> int64 [T]. Raises Error if there are none, or some of another tokenizer."""
        found: dict[str, Array] = {}
        paths = sorted(self.folder.glob("codes-*.npz"))
        for shard in range(max(1, len(paths))):
            if not self.path(shard).is_file() or self._told(shard)[0] != self.tokenizer:
                told = f"'{self.path(shard)}' is missing or of another speech tokenizer"
                raise Error(f"{told}: run python -m samples.nano encode first")
            stored = _read(self.path(shard), "codes", "tokens")
            pieces = np.split(stored["codes"].astype(np.int64), np.cumsum(stored["tokens"])[:-1])
            found |= dict(zip(self._told(shard)[1], pieces, strict=True))
        return found


def _read(path: Path, *names: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        raise Error(f"'{path}' holds no speech codes ({e}): delete it and run python -m samples.nano encode") from e
