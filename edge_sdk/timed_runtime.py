"""A Runtime around another that measures every run of every graph: what remains of a step's time is our own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from edge_sdk.runtime import Array, Call, Engine, Runtime
from edge_sdk.tensors import TensorSpec


class TimedRuntime:
    """Same engines, same buffers. `seconds` sums the time inside runs by graph, `runs` counts them."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.name, self.device = inner.name, inner.device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.runs: defaultdict[str, int] = defaultdict(int)

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    def engine(self, graph: str) -> Engine:
        return _TimedEngine(self._inner.engine(graph), self)

    def fused(self, graph: str) -> Engine | None:
        engine = self._inner.fused(graph)
        return None if engine is None else _TimedEngine(engine, self)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._inner.zeros(shape, dtype)


class _TimedEngine:
    def __init__(self, inner: Engine, clock: TimedRuntime) -> None:
        self._inner, self._clock = inner, clock
        self.name = inner.name
        self.inputs: Mapping[str, TensorSpec] = inner.inputs
        self.outputs: Mapping[str, TensorSpec] = inner.outputs

    def call(self) -> Call:
        return _TimedCall(self._inner.call(), self.name, self._clock)


class _TimedCall:
    def __init__(self, inner: Call, graph: str, clock: TimedRuntime) -> None:
        self._inner, self._graph, self._clock = inner, graph, clock
        self.set, self.out, self.fetch = inner.set, inner.out, inner.fetch

    def run(self) -> dict[str, Array]:
        began = time.perf_counter()
        try:
            return self._inner.run()
        finally:
            self._clock.seconds[self._graph] += time.perf_counter() - began
            self._clock.runs[self._graph] += 1
