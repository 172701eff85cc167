"""Context: what both caches hold of a conversation, and how a newly rendered prompt reuses it.

Upstream renders and computes the whole conversation anew for every turn. Here the newly rendered ids are compared with
the prompt that was prefilled last; the longest common prefix stays, the rest is computed. What the model said stands
differently in the next prompt (text alone, without the speech that was joined to it), so generated positions never
count as prefilled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_sdk.backbone import Backbone, BackboneOutput
from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error
from edge_sdk.prompt import Prompt
from edge_sdk.runtime import Array, Runtime
from edge_sdk.speech_head import open_speech_head

PREFILL_ROWS = 256  # positions a run: bounds the memory of attention scores, and the wait for an interruption


class Context:
    """Both KV caches of one conversation, `capacity` backbone positions each."""

    def __init__(self, runtime: Runtime, model: ModelConfig, capacity: int, *, speech: bool) -> None:
        self.capacity = capacity
        head = model.speech_head if speech else None
        try:
            self.backbone = Backbone(runtime, model, capacity)
            self.speech_head = open_speech_head(runtime, model, head, capacity) if head else None
        except (MemoryError, ValueError, OverflowError) as e:  # the latter: more than any array can have
            raise Error(f"no memory for caches of {capacity} positions ({e}): choose fewer context_tokens") from e
        self._empty = Prompt(
            np.zeros(0, np.int64),
            np.zeros((0, model.backbone.hidden_size), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
        )
        self._prompt = self._empty
        self._last_input: Array | None = None  # head input [1, hidden] of the prompt's last position
        self._ready: BackboneOutput | None = None  # of the prompt's last position, computed early
        self.reused = 0  # positions that the last `prefill` kept

    def prefill(self, prompt: Prompt, stop: Callable[[], bool] = lambda: False) -> BackboneOutput | None:
        """Have the caches hold exactly `prompt`, at the cost of what is new in it. Its last position is run in any
        case, or was by `prefill_early`.

        Args:
            stop: asked between pieces; once it says True, None is returned and what was done so far stays usable.

        If the runtime fails the caches are emptied, so that the next call starts clean.
        """
        shared = self._prompt.shared_prefix(prompt)
        output, self._ready = self._ready, None
        if output and shared == len(prompt) == len(self._prompt):
            self.reused = shared
            return None if stop() else output
        self.reused = at = min(shared, len(prompt) - 1)
        try:
            self._rewind(at)
            output = None
            while at < len(prompt):
                if stop():
                    return None
                end = min(at + PREFILL_ROWS, len(prompt))
                output = self._append(prompt, at, end)
                at = end
            return output
        except BaseException:
            self.reset()
            raise

    def prefill_early(self, prompt: Prompt, stop: Callable[[], bool]) -> None:
        """As `prefill`, for a prompt that may still grow: nothing is run twice, and if it turns out to be complete, the
        `prefill` that it is generated from runs nothing."""
        if self._prompt.shared_prefix(prompt) < len(prompt):
            self._ready = self.prefill(prompt, stop)

    def _rewind(self, keep: int) -> None:
        self.backbone.cache.trim(keep)
        if self.speech_head:
            self.speech_head.rewind(keep, self._last_input if keep and keep == len(self._prompt) else None)
        self._prompt = self._prompt.head(keep)

    def _append(self, prompt: Prompt, begin: int, end: int) -> BackboneOutput:
        first, last = np.searchsorted(prompt.audio_positions, (begin, end))
        output = self.backbone.prefill(
            prompt.ids[begin:end], prompt.audio[first:last], prompt.audio_positions[first:last] - begin
        )
        if self.speech_head:
            self.speech_head.prefill(output.head_input)
        self._last_input = output.head_input[-1:].copy()
        self._prompt = prompt.head(end)
        return output

    def reset(self) -> None:
        self._prompt = self._empty
        self._last_input = self._ready = None
        self.backbone.cache.reset()
        if self.speech_head:
            self.speech_head.rewind(0, None)

    @property
    def nbytes(self) -> int:
        return self.backbone.nbytes + (self.speech_head.nbytes if self.speech_head else 0)
