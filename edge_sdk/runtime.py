"""What a backend offers: a Runtime opens engines of a bundle, an Engine is one graph, a Call is one caller's bindings.

Weights live in the engine and are shared. Everything that belongs to one conversation (KV caches, fixed input and
output buffers) lives in buffers of the caller and is bound by reference, so that a step moves no memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from edge_sdk.tensors import TensorSpec

Array = np.ndarray[Any, Any]


def no_telemetry() -> None:
    """Called before a runtime's library is imported. ONNX Runtime's wheels (seen in 1.32) write a device id to the
    user's cache and open connections to Microsoft from the moment they are imported; its own call to end that comes too
    late. A device that is promised to stay offline does neither, unless the environment says otherwise beforehand."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Call(Protocol):
    """Bindings of one caller to an engine. Not for several threads at once."""

    def set(self, name: str, array: Array) -> None:
        """Bind an input by reference. The array must be C-contiguous; its contents are read at `run`."""

    def out(self, name: str, array: Array) -> None:
        """Bind an output by reference: `run` writes into this array. An input's own array may be given (in place)."""

    def fetch(self, *names: str) -> None:
        """Have `run` return these outputs as new arrays."""

    def run(self) -> dict[str, Array]:
        """Execute. Returns the outputs named by `fetch`."""


class Engine(Protocol):
    """One graph of a bundle, ready to run. Thread-safe; calls of several threads may run side by side."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def call(self) -> Call:
        """A fresh set of bindings."""


class Runtime(Protocol):
    """A backend opened on one bundle."""

    name: str
    device: str

    def engine(self, graph: str) -> Engine:
        """The engine of a graph in the bundle's manifest, loaded at first use and kept."""

    def fused(self, graph: str) -> Engine | None:
        """The engine of a graph that needs our own ops; None, with the reason in the log, where it cannot run."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory at a fixed address that calls can bind."""
