"""A clip on its way into the model: PCM in pieces -> mel windows -> encoder rows, redone only where they must be.

The mel's clamp follows the loudest moment of the whole clip, so a window encoded while the user still talks may turn
out to have been clamped too low. When a later sound raises the floor above a value in an earlier window, that window is
encoded again; others stay. Rows that changed get new keys, so that the caches behind drop exactly what follows them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.encoder import Encoder, EncoderState
from edge_sdk.mel import LongAudio, MelStream, RawMel
from edge_sdk.prompt import Clip, new_row_keys
from edge_sdk.runtime import Array


@dataclass
class _Window:
    raw: RawMel
    floor: float  # the clamp it was encoded with
    before: EncoderState
    after: EncoderState
    rows: Array
    keys: Array


class ClipEncoder:
    """Takes PCM at the mel's sample rate; `clip` is what is encoded so far, final after `finish`."""

    def __init__(self, encoder: Encoder, model: ModelConfig, long_audio: LongAudio) -> None:
        self._encoder, self._model = encoder, model
        self._mel = MelStream(model.mel, long_audio)
        self._frames = model.encoder.window_frames
        self._windows: list[_Window] = []
        self._total: int | None = None
        self.redone = 0  # windows encoded again, for the metrics and the tests

    @property
    def samples(self) -> int:
        return self._mel.samples

    def feed(self, pcm: Any) -> bool:
        """Append mono PCM; encode every window that is complete. Returns whether any rows are new or changed."""
        self._mel.feed(pcm)
        # One frame more than the window must be final: so a shorter last window always remains for `finish`.
        return self._encode_ready(self._frames + 1)

    def finish(self) -> Clip:
        """The clip is complete: encode the rest, fill or cut to the number of placeholders."""
        self._mel.finish()
        self._total = self._model.placeholder_count(self._mel.samples)
        self._encode_ready(self._frames + 1)
        self._append(self._mel.take(), last=True)
        return self.clip()

    def copy(self) -> ClipEncoder:
        """The same clip once more, as far as it is encoded: to finish one, and feed the other if it was too early."""
        twin = copy.copy(self)
        twin._mel = self._mel.copy()
        twin._windows = [replace(window) for window in self._windows]
        return twin

    def clip(self) -> Clip:
        rows = [w.rows for w in self._windows] or [np.zeros((0, self._model.backbone.hidden_size), np.float32)]
        keys = [w.keys for w in self._windows] or [np.zeros(0, np.int64)]
        return Clip(np.concatenate(rows), np.concatenate(keys), self.samples / self._model.mel.sample_rate)

    def _encode_ready(self, needed: int) -> bool:
        changed = self._redo()
        while self._mel.ready >= needed:
            self._append(self._mel.take(self._frames), last=False)
            changed = True
        return changed

    def _append(self, raw: RawMel, *, last: bool) -> None:
        before = self._windows[-1].after if self._windows else self._encoder.start()
        self._windows.append(self._encode(raw, before, last=last))

    def _encode(self, raw: RawMel, before: EncoderState, *, last: bool) -> _Window:
        floor = self._mel.floor
        rows, after = self._encoder.window(raw.normalize(floor), before, total_groups=self._total if last else None)
        return _Window(raw, floor, before, after, rows, new_row_keys(len(rows)))

    def _redo(self) -> bool:
        """Encode again what a raised floor changes, and what a changed carry changes after it."""
        floor, changed, carry_changed = self._mel.floor, False, False
        for n, window in enumerate(self._windows):
            if carry_changed or window.raw.changes(window.floor, floor):
                before = self._windows[n - 1].after if n else window.before
                new = self._encode(window.raw, before, last=False)
                carry_changed = not np.array_equal(new.after.carry, window.after.carry)
                self._windows[n] = new
                self.redone += 1
                changed = True
            else:
                window.floor = floor  # the same rows under either floor
        return changed
