"""One caller's bindings to an engine of TensorRT or TensorRT-RTX: fixed addresses, a CUDA graph per repeated step.

Arrays from `Runtime.zeros` are seen by host and GPU at one address and are bound as they are. Any other array lies on
the host alone: its contents are copied to the GPU when a run begins, and a bound output's back before the run returns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.errors import Error
from edge_sdk.runtime import Array
from edge_sdk.runtimes.trt_engine import Device, TrtEngine
from edge_sdk.tensors import TensorSpec

log = logging.getLogger("edge_sdk.tensorrt")


class _Binding:
    """One array of the caller and where the GPU sees it."""

    def __init__(self, device: Device, array: Array) -> None:
        self.array = array
        self.shared = device.shares(array)
        if self.shared:
            self.address = _address(array)
        else:
            self._memory = device.memory(array.nbytes)
            self.address = self._memory.address
            self.staging = device.pinned(array.shape, array.dtype)

    @property
    def host_address(self) -> int:
        """Where the host reads it during a run."""
        return self.address if self.shared else _address(self.staging)

    def takes(self, array: Array) -> bool:
        """Whether another array can stand at this place without anything being bound anew."""
        alike = array.shape == self.array.shape and array.dtype == self.array.dtype
        return alike and (not self.shared or _address(array) == self.address)

    def upload(self, stream: Any) -> None:
        if not self.shared and self.array.nbytes:
            stream.to_device(self.address, _address(self.staging), self.array.nbytes)

    def download(self, stream: Any) -> None:
        if not self.shared and self.array.nbytes:
            stream.to_host(_address(self.staging), self.address, self.array.nbytes)


class TrtCall:
    """Bindings of one caller. The second run with unchanged bindings is captured; later ones launch the capture."""

    def __init__(self, engine: TrtEngine) -> None:
        self._engine = engine
        self._device = engine.place.device
        self._inputs: dict[str, _Binding] = {}
        self._outputs: dict[str, _Binding] = {}
        self._fetched: tuple[str, ...] = ()
        self._contexts: dict[int, Any] = {}
        self._made: dict[str, _Binding] = {}  # outputs nobody bound
        self._runs = 0  # of the present bindings
        self._graph: Any = None
        self._capturable = not engine.entry.host_inputs
        self._context: Any = None

    def set(self, name: str, array: Array) -> None:
        self._bind(self._inputs, self._engine.inputs, name, array)

    def out(self, name: str, array: Array) -> None:
        self._bind(self._outputs, self._engine.outputs, name, array)

    def fetch(self, *names: str) -> None:
        for name in names:
            self._find(self._engine.outputs, name)
        if names != self._fetched:
            self._fetched = names
            self._changed()

    def _bind(self, kept: dict[str, _Binding], specs: Mapping[str, TensorSpec], name: str, array: Array) -> None:
        self._find(specs, name).check(array, f"graph '{self._engine.name}': ")
        if not array.flags.c_contiguous:
            raise Error(f"graph '{self._engine.name}': the array for '{name}' is not C-contiguous")
        known = kept.get(name)
        if known is not None and known.shared == self._device.shares(array) and known.takes(array):
            known.array = array
            return
        self._device.enter()
        kept[name] = _Binding(self._device, array)
        self._changed()

    def _find(self, specs: Mapping[str, TensorSpec], name: str) -> TensorSpec:
        if name not in specs:
            raise Error(f"graph '{self._engine.name}' has no '{name}' there; it has {', '.join(specs)}")
        return specs[name]

    def _changed(self) -> None:
        self._runs, self._graph, self._context = 0, None, None

    def run(self) -> dict[str, Array]:
        with self._engine.lock:
            self._device.enter()
            for binding in self._inputs.values():
                if not binding.shared:
                    np.copyto(binding.staging, binding.array)
            stream = self._engine.stream
            if self._context is None:
                self._context = self._prepare()
            if self._graph is None and self._runs and self._capturable:
                self._graph = self._capture(stream)
            if self._graph is not None:
                self._graph.launch(stream)
            else:
                self._enqueue(stream)
            stream.synchronize()
            if not self._runs:
                self._engine.keep_kernels()
            self._runs += 1
            return self._results()

    def _prepare(self) -> Any:
        """A context with every shape and address of the present bindings."""
        engine = self._engine
        missing = [n for n in engine.inputs if n in engine.present and n not in self._inputs]
        if missing:
            raise Error(f"graph '{engine.name}': nothing is bound to {', '.join(missing)}")
        used = {name: b for name, b in self._inputs.items() if name in engine.present}
        profile = engine.profile_for({name: b.array.shape for name, b in used.items()})
        if profile not in self._contexts:
            self._contexts[profile] = engine.context(profile)
        context = self._contexts[profile]
        for name, binding in used.items():
            if name not in engine.entry.host_inputs:
                self._accept(context.set_tensor_address(name, binding.address), name)
            self._accept(context.set_input_shape(name, binding.array.shape), name)
        self._bind_outputs(context)
        return context

    def _bind_outputs(self, context: Any) -> None:
        """Outputs may have other sizes in every run where a host input sets them."""
        engine = self._engine
        for name in engine.entry.host_inputs:
            self._accept(context.set_tensor_address(name, self._inputs[name].host_address), name)
        unknown = context.infer_shapes()
        if unknown:
            raise Error(f"graph '{engine.name}': sizes do not follow from what is bound: {', '.join(unknown)}")
        self._made = {}
        for name, spec in engine.outputs.items():
            if name not in engine.present:
                continue
            cache = engine.aliases.get(name)
            binding = self._inputs[cache] if cache else self._outputs.get(name)
            if binding is None:
                shape = tuple(context.get_tensor_shape(name))
                binding = self._made[name] = _Binding(self._device, np.empty(shape, spec.numpy_dtype))
            elif not cache and tuple(context.get_tensor_shape(name)) != binding.array.shape:
                raise Error(
                    f"graph '{engine.name}' makes '{name}' {list(context.get_tensor_shape(name))}, the bound array is "
                    f"{list(binding.array.shape)}"
                )
            self._accept(context.set_tensor_address(name, binding.address), name)

    def _accept(self, ok: bool, name: str) -> None:
        if not ok:
            raise Error(
                f"graph '{self._engine.name}' does not take what is bound to '{name}': {self._engine.explain()}"
            )

    def _enqueue(self, stream: Any) -> None:
        if self._engine.entry.host_inputs:  # their values set shapes, and may have changed since the last run
            self._bind_outputs(self._context)
        for name, binding in self._inputs.items():
            if name in self._engine.present and name not in self._engine.entry.host_inputs:
                binding.upload(stream)
        if not self._context.execute_async_v3(stream.handle):
            raise Error(
                f"graph '{self._engine.name}' failed in {self._engine.place.library.name}: {self._engine.explain()}"
            )
        for name, binding in (*self._outputs.items(), *self._made.items()):
            if name not in self._engine.aliases and (name in self._outputs or name in self._fetched):
                binding.download(stream)

    def _capture(self, stream: Any) -> Any:
        """The same run as a CUDA graph; None where the engine cannot be captured, which is said once."""
        if self._context.is_stream_capturable(stream.handle) is False:
            self._capturable = False
            log.info("engine '%s' cannot be captured; its steps are enqueued one by one", self._engine.name)
            return None
        graph: Any = None
        try:
            stream.begin_capture()
            try:
                self._enqueue(stream)
            finally:
                graph = stream.end_capture()
        except Error as e:
            self._capturable = False
            log.warning("engine '%s' cannot be captured (%s); its steps are enqueued one by one", self._engine.name, e)
        return graph if self._capturable else None

    def _results(self) -> dict[str, Array]:
        for binding in self._outputs.values():
            if not binding.shared:
                np.copyto(binding.array, binding.staging)
        found = {}
        for name in self._fetched:
            binding = self._outputs.get(name) or self._made[name]
            found[name] = (binding.array if binding.shared else binding.staging).copy()
        return found


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
