"""The vocoder's thread: takes groups of speech tokens while they are made, gives sound as it becomes ready."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.runtime import Array

if TYPE_CHECKING:
    from edge_sdk.vocoder import Vocoder

QUEUE_GROUPS = 64  # 12.8 s of speech: then the decode loop waits for the vocoder


class Speaker:
    """Synthesizes one reply. `say` and `finish` are called by the decode loop, `emit` by this object's thread."""

    def __init__(self, vocoder: Vocoder, emit: Callable[[Array, int], None]) -> None:
        """
        Args:
            emit: called with pcm float32 [n] and the number of samples before it.
        """
        self._stream = vocoder.stream()
        self._codes = vocoder.codebook_size
        self._emit = emit
        self._queue: deque[Array] = deque()
        self._changed = threading.Condition()
        self._complete = self._stopped = False
        self._failure: BaseException | None = None
        self.samples = 0
        self.first_audio_at: float | None = None
        self._pcm: list[Array] = []
        self._thread = threading.Thread(target=self._work, name="edge_sdk-vocoder", daemon=True)
        self._thread.start()

    def say(self, group: Array) -> None:
        """Queue a group, waiting for room. Ids that are not real codes (eos, fillers) make no sound.

        Raises what the vocoder raised, if it failed meanwhile.
        """
        ids = group[group < self._codes]
        with self._changed:
            while len(self._queue) >= QUEUE_GROUPS and not (self._failure or self._stopped):
                self._changed.wait()
            if self._failure:
                raise self._failure
            if len(ids):
                self._queue.append(ids)
                self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything queued is sound, or until `halt`. Raises what the vocoder raised."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure:
            raise self._failure

    def halt(self) -> None:
        """From any thread: end after the chunk in progress; what is queued makes no sound any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        """`halt`, and wait for the end."""
        self.halt()
        self._thread.join()

    @property
    def pcm(self) -> Array:
        """All sound made so far, float32 [n]."""
        return np.concatenate(self._pcm) if self._pcm else np.zeros(0, np.float32)

    @property
    def times(self) -> tuple[float, float]:
        """Seconds spent in flow and waveform."""
        return self._stream.flow_s, self._stream.waveform_s

    @property
    def cache_bytes(self) -> int:
        return self._stream.nbytes

    def _work(self) -> None:
        try:
            while (ids := self._next()) is not None:
                self._deliver(self._stream.push(ids))
            if not self._stopped:
                self._deliver(self._stream.finish())
        except BaseException as e:  # handed to the decode loop, which raises it
            with self._changed:
                self._failure = e
                self._changed.notify_all()
        finally:
            self._stream.close()  # its caches serve the next reply

    def _next(self) -> Array | None:
        with self._changed:
            while not (self._queue or self._complete or self._stopped):
                self._changed.wait()
            if self._stopped or not self._queue:
                return None
            ids = np.concatenate(self._queue)  # all that waits, so that a chunk is not held up by small pushes
            self._queue.clear()
            self._changed.notify_all()
            return ids

    def _deliver(self, pcm: Array) -> None:
        if not len(pcm):
            return
        if self.first_audio_at is None:
            self.first_audio_at = time.perf_counter()
        self._pcm.append(pcm)
        before, self.samples = self.samples, self.samples + len(pcm)
        self._emit(pcm, before)
