"""Recordings of a conversation, for developers who ask for them: nothing else in this package keeps a user's voice."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np

from edge_sdk.audio import write_wav
from edge_sdk.checks import check_path
from edge_sdk.errors import AudioError, Error
from edge_sdk.events import Reply
from edge_sdk.runtime import Array

log = logging.getLogger("edge_sdk.assistant")


class Recorder:
    """A folder with a WAV file for each question and each reply. It goes on counting where others left off."""

    def __init__(self, folder: str | os.PathLike[str], sample_rate: int) -> None:
        """Raises Error if the folder cannot be made or written to."""
        self._folder, self._rate = check_path("the folder for recordings", folder), sample_rate
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = [re.match(r"turn-(\d+)-", path.name) for path in self._folder.iterdir()]
        except OSError as e:
            raise Error(f"recordings cannot be kept in '{self._folder}': {e.strerror or e}") from e
        if not os.access(self._folder, os.W_OK):
            raise Error(f"recordings cannot be kept in '{self._folder}': permission denied")
        self._number = max((int(m.group(1)) for m in found if m), default=0)

    def keep(self, question: list[Array], reply: Reply | None, played_ms: float) -> None:
        """The turn is over: write its question (pieces of float32 [n]), and of the reply what was played."""
        self._number += 1
        self._write("question", np.concatenate([np.zeros(0, np.float32), *question]), self._rate)
        if reply is not None:
            self._write("reply", reply.audio[: round(played_ms * reply.sample_rate / 1000)], reply.sample_rate)

    def _write(self, what: str, pcm: Array, sample_rate: int) -> None:
        if not len(pcm):
            return
        path: Path = self._folder / f"turn-{self._number:04d}-{what}.wav"
        try:
            write_wav(path, pcm, sample_rate)
        except AudioError as e:  # a full disk does not end a conversation
            log.warning("a recording was not kept: %s", e)
