"""The flow block by block, under the trained chunk mask.

Every frame sees its block of `chunk_frames` and all before it. So a block is computed once, over caches that hold what
the earlier blocks left at the same Euler step, and nothing that comes later changes it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from edge_sdk.call_state import CallState
from edge_sdk.errors import Error
from edge_sdk.flow import Flow, FlowSettings, TokenConditions, chunk_tokens
from edge_sdk.runtime import Array, Call

log = logging.getLogger("edge_sdk.flow")

_GROWTH_CHUNKS = 8  # first capacity of an unbounded cache; doubled when full


class FlowStream:
    """One utterance, block by block. `push` gives the frames that nothing later can change."""

    def __init__(self, flow: Flow, settings: FlowSettings) -> None:
        self._config = flow.config
        self._chunk_tokens = chunk_tokens(flow.config)
        self._preview_tokens = settings.preview_tokens
        self._pending = np.empty(0, np.int64)
        self._front = TokenConditions(flow, settings.speaker)
        self._blocks = _BlockSampler(flow, settings)
        self.reset()

    def push(self, ids: Array) -> Array:
        """int64 [T] -> mel of the blocks that became complete, float32 [n, n_mels].

        Raises Error, with nothing taken, if there is not enough memory for them.
        """
        pending = np.concatenate([self._pending, ids])
        lookahead = self._config.lookahead_tokens
        self._blocks.reserve(max(0, len(pending) - lookahead) // self._chunk_tokens * self._config.chunk_frames)
        self._pending = pending
        blocks = []
        while len(self._pending) >= self._chunk_tokens + lookahead:
            blocks.append(self._block(self._chunk_tokens))
            self._pending = self._pending[self._chunk_tokens :]
            self._begun = True
        if not self._begun and self._preview_tokens and len(self._pending) >= self._preview_tokens + lookahead:
            return self._preview()
        return self._not_yet_given(blocks)

    def finish(self) -> Array:
        """The mel of what is left; the last block may be a short one."""
        if not len(self._pending):
            return self._not_yet_given([])
        self._blocks.reserve(len(self._pending) * self._config.frames_per_token)
        condition = self._front.next(self._pending, final=True)["condition"]
        self._pending = self._pending[:0]
        size = self._config.chunk_frames
        starts = range(0, len(condition), size)
        return self._not_yet_given([self._blocks.sample(condition[at : at + size]) for at in starts])

    def _block(self, tokens: int) -> Array:
        """The mel of the first pending tokens, which stay pending."""
        seen = self._pending[: tokens + self._config.lookahead_tokens]
        return self._blocks.sample(self._front.next(seen, final=False)["condition"])

    def _preview(self) -> Array:
        """The first tokens alone; then everything back to the beginning, for their block as a whole."""
        mel = self._block(self._preview_tokens)
        self._front.reset()
        self._blocks.restart()
        self._begun, self._given = True, len(mel)
        return mel

    def _not_yet_given(self, blocks: list[Array]) -> Array:
        if not blocks:
            return np.empty((0, self._config.n_mels), np.float32)
        given, self._given = self._given, 0
        return np.concatenate(blocks)[given:]

    def reset(self) -> None:
        """Back to the beginning of an utterance; memory is kept."""
        self._pending = self._pending[:0]
        self._begun = False  # whether sound of this utterance was given
        self._given = 0  # frames of the first block that a preview gave
        self._front.reset()
        self._blocks.restart()

    @property
    def nbytes(self) -> int:
        """Memory of the caches."""
        return self._blocks.nbytes


@contextmanager
def _memory_errors(frames: int) -> Iterator[None]:
    try:
        yield
    except MemoryError as e:
        raise Error(
            f"no memory for the flow's caches of {frames} frames ({e}): choose a smaller context_s or fewer steps"
        ) from e


class _BlockSampler:
    """All Euler steps for one block of new frames after another.

    Every step has caches and bindings of its own: keys depend on the state x at that step. While the context is not
    full, a block's keys stay where the step wrote them; then they replace the oldest block's. The order of keys in
    memory is of no effect, since positions are rotated in. So a block costs the same however long the stream is, and
    only the new keys are ever moved.
    """

    def __init__(self, flow: Flow, settings: FlowSettings) -> None:
        c = flow.config
        self._flow, self._config = flow, c
        self._context = settings.context_frames
        if self._context is not None:
            self._context = math.ceil(self._context / c.chunk_frames) * c.chunk_frames
        self._start = self._filled = self._oldest = 0
        # Behind the last column of noise a stream begins anew, at a block's border.
        self._limit = c.noise_frames // c.chunk_frames * c.chunk_frames
        whole_chunks = _GROWTH_CHUNKS if self._context is None else self._context // c.chunk_frames + 1
        self._capacity = min(whole_chunks * c.chunk_frames, self._limit)
        with _memory_errors(self._capacity):
            sizes = {"capacity": self._capacity}
            self._states = [CallState(flow.runtime, flow.step_engine, sizes) for _ in range(settings.steps)]
        zeros = flow.runtime.zeros
        self._x = [zeros((c.chunk_frames, c.n_mels), np.float32) for _ in range(2)]
        width = flow.step_engine.inputs["condition"].shape[1]
        self._condition = zeros((c.chunk_frames, int(width)), np.float32)
        self._position = zeros((c.chunk_frames,), np.float32)
        self._last, self._total = zeros((1,), np.int32), zeros((), np.int32)
        self._calls = [
            self._bind(flow, state, row, settings.cfg_rate)
            for state, row in zip(self._states, flow.step_rows(settings.steps), strict=True)
        ]
        self._bind_frames(c.chunk_frames)
        self.restart()
        log.info(
            "flow caches: %.1f MB for %d steps and %d frames (context %s)",
            self.nbytes / 1e6,
            settings.steps,
            self._capacity,
            "unbounded" if self._context is None else f"{self._context / c.frame_rate_hz:g} s",
        )

    def _bind(self, flow: Flow, state: CallState, row: int, cfg_rate: float) -> Call:
        call = flow.step_engine.call()
        state.bind(call)
        call.set("step", np.array(row))
        flow.guide(call, cfg_rate)
        call.set("last_position", self._last)
        call.set("total_positions", self._total)
        return call

    def _bind_frames(self, frames: int) -> None:
        """Bind the buffers' first `frames` rows: only a stream's last block is short."""
        self._frames = frames
        for i, call in enumerate(self._calls):
            call.set("x", self._x[i % 2][:frames])
            call.out("x_next", self._x[1 - i % 2][:frames])
            call.set("condition", self._condition[:frames])
            call.set("position", self._position[:frames])

    def sample(self, condition: Array) -> Array:
        """The next block: condition [n, width], n <= chunk_frames and short only at the end -> mel [n, n_mels]."""
        n = len(condition)
        if self._start + n > self._limit:
            log.info("flow: the initial noise ends after %d frames, caches restart", self._limit)
            self.restart()
        if n != self._frames:
            self._bind_frames(n)
        self._x[0][:n] = self._flow.noise[self._start : self._start + n]
        self._condition[:n] = condition
        self._position[:n] = np.arange(self._start, self._start + n)
        self._last[0] = self._filled + n - 1
        self._total[()] = self._filled + n
        for call in self._calls:
            call.run()
        self._start += n
        self._keep(n)
        return self._x[len(self._calls) % 2][:n].copy()

    def _keep(self, n: int) -> None:
        """The newest keys lie behind the filled part. Count them in, or put them in the place of the oldest."""
        if self._context is None or self._filled + n <= self._context:
            self._filled += n
        elif self._context:
            new = slice(self._filled, self._filled + n)
            for cache in self._key_value_arrays():
                cache[:, :, self._oldest : self._oldest + n] = cache[:, :, new]
            self._oldest = (self._oldest + n) % self._context

    def _key_value_arrays(self) -> list[Array]:
        return [a for state in self._states for name, a in state.arrays.items() if not name.startswith("conv_")]

    def reserve(self, frames: int) -> None:
        """Grow unbounded caches for so many more frames: one array at a time, so that no more than one exists twice.

        Raises Error if there is not enough memory; the stream can go on all the same.
        """
        needed = min(self._filled + frames, self._limit)
        if self._context is not None or needed <= self._capacity:
            return
        capacity = min(max(2 * self._capacity, needed), self._limit)
        with _memory_errors(capacity):
            for call, state in zip(self._calls, self._states, strict=True):
                for name, old in state.arrays.items():
                    if name.startswith("conv_"):
                        continue
                    state.arrays[name] = self._flow.runtime.zeros((*old.shape[:2], capacity, old.shape[3]), old.dtype)
                    state.arrays[name][:, :, : self._filled] = old[:, :, : self._filled]
                    state.bind_one(call, name)
        self._capacity = capacity
        log.info("flow caches: grown to %.1f MB for %d frames", self.nbytes / 1e6, self._capacity)

    def restart(self) -> None:
        """Forget every frame. Keys need no clearing: what is not counted is not read."""
        self._start = 0  # frames since the caches began: column of the noise, rotary position
        self._filled = 0  # frames in the caches
        self._oldest = 0  # where the oldest of a full cache lie
        for state in self._states:
            state.clear("conv_cache")

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states)
