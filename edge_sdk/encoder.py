"""The audio encoder over a clip: windows in, 5 Hz rows out, what is left between windows carried."""

from __future__ import annotations

import threading

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.runtime import Array, Runtime


class EncoderState:
    """What one clip carries from window to window. A copy is a checkpoint to come back to."""

    def __init__(self, carry: Array, groups: int = 0) -> None:
        self.carry = carry  # float32 [C, d_model]: rows that did not fill a group yet
        self.groups = groups  # groups made so far


class Encoder:
    """Runs windows, of any number of clips. Holds no state of a clip itself; threads may share it."""

    def __init__(self, runtime: Runtime, model: ModelConfig) -> None:
        self._model = model
        self._call = runtime.engine("encoder").call()
        self._call.fetch("embeddings", "rest")
        self._lock = threading.Lock()  # bindings are one caller's: from the first `set` to the end of the run

    def start(self) -> EncoderState:
        return EncoderState(np.zeros((0, self._model.encoder.d_model), np.float32))

    def window(self, mel: Array, state: EncoderState, *, total_groups: int | None = None) -> tuple[Array, EncoderState]:
        """Encode one window.

        Args:
            mel: float32 [n_mels, frames], frames = the window size but for the last window, which may be shorter.
            total_groups: placeholders of the whole clip, given with the last window: what the rows do not fill is
                filled with zero rows, and surplus rows are cut, as upstream does.
        Returns:
            float32 [groups, hidden], and the state for the next window.
        """
        rows = len(state.carry) + (mel.shape[1] - 1) // 2 + 1
        size = self._model.group_size
        if total_groups is None:
            groups = rows // (2 * size)
            pairs = groups * size
        else:
            groups = total_groups - state.groups
            pairs = min(rows // 2, groups * size)
        with self._lock:
            self._call.set("mel", np.ascontiguousarray(mel))
            self._call.set("carry", state.carry)
            self._call.set("pairs", np.array([pairs], np.int64))
            self._call.set("groups", np.array([groups], np.int64))
            out = self._call.run()
        return out["embeddings"], EncoderState(out["rest"], state.groups + groups)
