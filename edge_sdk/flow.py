"""The flow: speech tokens -> vocoder mel. `Flow` is engines and tables, shared and stateless; it computes an utterance
as a whole. `flow_stream.py` does it block by block. Frames lead in every array, [frames, n_mels].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_sdk.call_state import CallState
from edge_sdk.config import FlowConfig
from edge_sdk.errors import BundleError, Error
from edge_sdk.runtime import Array, Call, Runtime


@dataclass(frozen=True, eq=False)
class FlowSettings:
    """How to sample.

    Attributes:
        speaker: float32 [speaker_dim].
        steps: Euler steps.
        cfg_rate: strength of classifier-free guidance. No effect on a flow that has none (`Flow.guide`).
        context_frames: frames before the current block that are kept; None keeps all.
        preview_tokens: give the frames of so many first tokens before their block is complete, from a block cut short
            there. Not exact: the rest of the block, computed whole, does not quite fit them. 0: no preview.
    """

    speaker: Array
    steps: int
    cfg_rate: float
    context_frames: int | None
    preview_tokens: int = 0


class Flow:
    """The flow's engines on one runtime. Holds no state of an utterance; threads may share it."""

    def __init__(self, runtime: Runtime, config: FlowConfig, noise: Array) -> None:
        """`noise`: the fixed initial noise, float32 [n_mels, noise_frames].

        Raises BundleError if the manifest's sizes or the noise do not fit together.
        """
        _check_sizes(config)
        if noise.shape != (config.n_mels, config.noise_frames) or noise.dtype != np.float32:
            raise BundleError(
                f"the initial noise must be float32 [{config.n_mels}, {config.noise_frames}], "
                f"found {noise.dtype}{list(noise.shape)}"
            )
        if config.noise_frames < config.chunk_frames:
            raise BundleError(f"the initial noise has {config.noise_frames} columns, a chunk {config.chunk_frames}")
        self.runtime = runtime
        self.config = config
        self.noise = np.ascontiguousarray(noise.T)
        self.tokens_engine = runtime.engine("flow_tokens")
        self.step_engine = runtime.engine("flow")

    def step_rows(self, steps: int) -> range:
        """Rows of the graph's tables that `steps` Euler steps walk through."""
        if steps not in self.config.steps:
            raise Error(
                f"this bundle has tables for {', '.join(map(str, self.config.steps))} flow steps, asked for {steps}; "
                "choose one of them, or export again with others"
            )
        start = sum(self.config.steps[: self.config.steps.index(steps)])
        return range(start, start + steps)

    def guide(self, call: Call, cfg_rate: float) -> None:
        """Binds the guidance. A vocoder whose own is 0 was exported without the half that it takes, and has none."""
        if "cfg_rate" in self.step_engine.inputs:
            call.set("cfg_rate", np.array(cfg_rate, np.float32))

    def whole(self, ids: Array, settings: FlowSettings, *, final: bool = True) -> Array:
        """All frames see all frames: ids int64 [T] -> mel float32 [T * frames_per_token, n_mels].

        With `final` False the last lookahead tokens are right context only and give no frames.
        """
        condition = TokenConditions(self, settings.speaker).next(ids, final=final)["condition"]
        frames = len(condition)
        if frames > self.config.noise_frames:
            raise Error(f"{frames} mel frames at once, the bundle has noise for {self.config.noise_frames}")
        call = self.whole_call(condition)
        self.guide(call, settings.cfg_rate)
        states = (self.noise[:frames].copy(), np.empty((frames, self.config.n_mels), np.float32))
        for i, row in enumerate(self.step_rows(settings.steps)):
            call.set("step", np.array(row))
            call.set("x", states[i % 2])
            call.out("x_next", states[1 - i % 2])
            call.run()
        return states[settings.steps % 2]

    def whole_call(self, condition: Array) -> Call:
        """Bindings for steps over all frames at once; `step`, `cfg_rate`, `x` and the results are the caller's.

        Nothing is cached: layers run one after another, so one pair of key and value arrays serves them all.
        """
        call, frames = self.step_engine.call(), len(condition)
        call.set("condition", condition)
        shared: dict[str, Array] = {}
        for name, spec in self.step_engine.inputs.items():
            kind = name.partition("_cache")[0]
            if kind in ("key", "value"):
                if kind not in shared:
                    shape = tuple(frames if d == "capacity" else int(d) for d in spec.shape)
                    shared[kind] = self.runtime.zeros(shape, spec.numpy_dtype)
                call.set(name, shared[kind])
                call.out(name.replace("_cache", "_cache_out"), shared[kind])
            elif kind == "conv":
                call.set(name, self.runtime.zeros(tuple(int(d) for d in spec.shape), spec.numpy_dtype))
        call.set("position", np.arange(frames, dtype=np.float32))
        call.set("last_position", np.array([frames - 1], np.int32))
        call.set("total_positions", np.array(frames, np.int32))
        return call


def _check_sizes(c: FlowConfig) -> None:
    smallest = min(c.frames_per_token, c.lookahead_tokens, c.chunk_frames, *c.steps)
    if smallest < 1 or not c.steps or c.chunk_frames % c.frames_per_token:
        raise BundleError(
            f"the manifest's flow cannot be: blocks of {c.chunk_frames} frames, {c.frames_per_token} frames a token, "
            f"{c.lookahead_tokens} tokens of lookahead, steps {list(c.steps)}; export the bundle again"
        )


def chunk_tokens(config: FlowConfig) -> int:
    """Tokens of one block of the chunk mask."""
    return config.chunk_frames // config.frames_per_token


class TokenConditions:
    """Token ids -> what the Euler steps add to x, incrementally."""

    def __init__(self, flow: Flow, speaker: Array) -> None:
        self._config = flow.config
        self._call = flow.tokens_engine.call()
        self._state = CallState(flow.runtime, flow.tokens_engine)
        self._state.bind(self._call)
        self._call.fetch("condition", "mu")
        self.set_speaker(speaker)

    def set_speaker(self, speaker: Array) -> None:
        self._call.set("speaker", speaker)

    def next(self, ids: Array, *, final: bool) -> dict[str, Array]:
        """ids int64: new tokens and, unless `final`, the lookahead tokens behind them (given again next time).

        Returns:
            condition float32 [frames of the new tokens, width]; mu float32 [new tokens, n_mels].
        """
        if final:
            ids = np.concatenate([ids, np.full(self._config.lookahead_tokens, self._config.codebook_size)])
        self._call.set("ids", np.ascontiguousarray(ids, np.int64))
        return self._call.run()

    def reset(self) -> None:
        self._state.clear()
