"""One plan of TensorRT or TensorRT-RTX, deserialized: its border, its profiles, its execution contexts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edge_sdk.engines import EngineEntry
from edge_sdk.errors import BundleError, Error
from edge_sdk.runtime import Array
from edge_sdk.tensors import TensorSpec

_SCRATCH_ALIGN = 256


class Device(Protocol):
    """What is used of cuda.Device. Tests put a pretended one here."""

    name: str
    sm: int

    def enter(self) -> None: ...
    def shared(self, shape: tuple[int, ...], dtype: Any) -> Array: ...
    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array: ...
    def shares(self, array: Array) -> bool: ...
    def memory(self, nbytes: int) -> Any: ...
    def stream(self) -> Any: ...


@dataclass(frozen=True)
class Place:
    """What one engine runs with: the library, the GPU, and a queue of its own."""

    library: Any
    device: Device


class TrtEngine:
    """One plan, deserialized. Calls of several threads take turns: they share the scratch memory."""

    def __init__(
        self,
        place: Place,
        graph: str,
        entry: EngineEntry,
        plan: memoryview,
        border: tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]],
        cache: RuntimeCacheFile,
        where: str,
    ) -> None:
        self.name, self.entry, self.place = graph, entry, place
        # The manifest's names in the stamp's types: caches may be narrower, capacities have a size.
        self.inputs: Mapping[str, TensorSpec] = {**border[0], **entry.input_specs()}
        self.outputs: Mapping[str, TensorSpec] = {**border[1], **entry.output_specs()}
        self.lock = threading.Lock()
        self._cache_file = cache
        place.device.enter()
        self._log = place.library.logger()
        self._runtime = place.library.module.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(plan) if self._runtime is not None else None
        if engine is None:
            raise BundleError(
                f"{where}: {place.library.name} cannot load engine '{graph}': {said(self._log)}; "
                "build the engines again with `edge-sdk build-engine`"
            )
        self.engine: Any = engine
        self.present = {self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)}
        # Outputs that are an input's memory: caches updated in place.
        self.aliases = {n: str(a) for n in self.present if (a := engine.get_aliased_input_tensor(n))}
        self._check_border(where)
        self.config, self._kernels = place.library.runtime_config(self.engine, cache.read())
        self.scratch = place.device.memory(self._scratch_bytes() + _SCRATCH_ALIGN)
        self.stream = place.device.stream()

    def _check_border(self, where: str) -> None:
        input_mode = self.place.library.module.TensorIOMode.INPUT
        for name in self.present:
            known = self.inputs if self.engine.get_tensor_mode(name) == input_mode else self.outputs
            if name not in known:
                raise BundleError(f"{where}: engine '{self.name}' has a tensor '{name}' that its stamp does not name")
        for name in self.outputs:
            cache = name.replace("_cache_out.", "_cache.")
            if "SpeechHead" in self.entry.plugins:  # it refuses a call that binds the two apart
                break
            if name.startswith(("key_cache_out", "value_cache_out")) and self.aliases.get(name) != cache:
                raise BundleError(f"{where}: engine '{self.name}' does not update '{cache}' in place; build it again")

    def _scratch_bytes(self) -> int:
        size = self.engine.device_memory_size_v2
        return int(size() if callable(size) else size)

    def context(self, profile: int) -> Any:
        """An execution context in one profile, over the shared scratch memory."""
        strategy = self.place.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.config is not None:
            self.config.set_execution_context_allocation_strategy(strategy)
            context = self.engine.create_execution_context(self.config)
        else:
            context = self.engine.create_execution_context(strategy)
        if context is None:
            raise Error(f"engine '{self.name}' cannot be prepared to run: {said(self._log)}")
        address = -(-self.scratch.address // _SCRATCH_ALIGN) * _SCRATCH_ALIGN
        context.set_device_memory(address, self._scratch_bytes())
        if not context.set_optimization_profile_async(profile, self.stream.handle):
            raise Error(f"engine '{self.name}' has no profile {profile}: {said(self._log)}")
        return context

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The narrowest profile these input shapes fit: the last, since decode stands behind prefill."""
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            for dim, size in zip(self.inputs[name].shape, shape, strict=True):
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    raise Error(
                        f"graph '{self.name}': dimension '{dim}' is {sizes[dim]} in one input, {size} in '{name}'"
                    )
        problem = ""
        for i in reversed(range(len(self.entry.profiles))):
            dims = self.entry.profiles[i]["dims"]
            outside = [d for d, n in sizes.items() if d in dims and not dims[d][0] <= n <= dims[d][2]]
            if not outside:
                return i
            name = outside[0]
            problem = f"'{name}' is {sizes[name]}, the engine takes {dims[name][0]} to {dims[name][2]}"
        raise Error(
            f"graph '{self.name}': {problem}. Build it for longer input: edge-sdk build-engine --context-tokens N, "
            "--vocoder-context S"
        )

    def explain(self) -> str:
        return said(self._log)

    def keep_kernels(self) -> None:
        """Save what was compiled at first use, so that the next start does not compile it again."""
        if self._kernels is not None:
            self._cache_file.write(bytes(self._kernels.serialize()))

    def call(self) -> Any:
        from edge_sdk.runtimes.trt_call import TrtCall

        return TrtCall(self)


class RuntimeCacheFile(Protocol):
    """Where compiled kernels are kept between starts."""

    def read(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...


def said(log_: Any) -> str:
    """What the library complained of since it was last asked."""
    words = " | ".join(dict.fromkeys(log_.errors))[:600]
    log_.errors.clear()
    if "cudaError 35" in words or "cudaError 100" in words:
        return "there is no GPU with a driver it can use"
    return words or "it does not say why"
