"""A rewritten graph -> TensorRT's network, checked, -> a plan. Knows the library only through `Library`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_sdk.errors import ExportError
from edge_sdk.export.engine.graph import Array, Graph, PluginLayer
from edge_sdk.export.engine.profiles import Profile

_OPTIMIZATION_LEVEL = 3
_KERNEL_HEADS = 16  # the library's attention kernels take float16 and heads of multiples of this
# Layers that read the weights and the caches: in a float16 build none of them may work on float32.
_HEAVY = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "ATTENTION_INPUT", "KV_CACHE_UPDATE")


class Library(Protocol):
    """What is used of edge_sdk.runtimes.trt_library.Library."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> Any: ...
    @property
    def version(self) -> str: ...
    @property
    def times_kernels(self) -> bool: ...
    def set_target(self, config: Any, sm: int, present: int | None) -> None: ...
    def network(self, builder: Any) -> Any: ...
    def logger(self) -> Any: ...
    def progress(self, report: Callable[[str, int, int], None]) -> Any: ...
    def plugins_missing(self) -> str: ...
    def plugin(self, creator: str, fields: Mapping[str, int | float | Sequence[int]]) -> Any: ...
    def allow_plugins(self, config: Any) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A serialized engine and what is worth knowing of it.

    Attributes:
        attention: "fused", "decomposed" (no kernel of the library fits its head size or type), or "" without any.
        kv_updates: native in-place cache updates.
    """

    data: bytes
    attention: str
    kv_updates: int


class Network:
    """One graph, parsed. Lives as long as the weights it refers to."""

    def __init__(self, library: Library, graph: Graph) -> None:
        self.graph, self._library, self._trt = graph, library, library.module
        self._log = library.logger()
        self._builder = self._trt.Builder(self._log)
        if self._builder is None:
            raise ExportError(f"{library.name} cannot start: {self._problems()}")
        self.network = library.network(self._builder)
        self._weights = [self._parse() if graph.plugin is None else self._whole_plugin(graph.plugin)]
        if graph.inner is not None:
            self._weights.append(self._inner_plugin(graph.inner))
        self.attentions = self._attentions()
        for attention in self.attentions:
            self._unscale(attention)

    # -- parsing

    def _parse(self) -> Mapping[str, Array]:
        model, large = self.graph.model()
        self._parser = self._trt.OnnxParser(self.network, self._log)
        ok = self._parser.load_model_proto(model.SerializeToString())
        for name, array in large.items():
            ok = ok and self._parser.load_initializer(name, array.ctypes.data, array.nbytes)
        if not (ok and self._parser.parse_model_proto()):
            found = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
            said = "; ".join(dict.fromkeys(_parser_words(e) for e in found)) or self._problems()
            raise ExportError(f"{self._library.name}'s parser does not take graph '{self.graph.name}': {said}")
        return large

    def _whole_plugin(self, layer: PluginLayer) -> Mapping[str, Array]:
        """The graph as one layer of our own."""
        tensors = {}
        for name, spec in self.graph.inputs.items():
            dims = tuple(-1 if isinstance(d, str) else d for d in spec.shape)
            tensors[name] = self.network.add_input(name, getattr(self._trt, spec.dtype), dims)
        added, kept = self._add_plugin(layer, tensors)
        for i, name in enumerate(layer.outputs):
            tensor = added.get_output(i)
            tensor.name = name
            self.network.mark_output(tensor)
        return kept

    def _inner_plugin(self, layer: PluginLayer) -> Mapping[str, Array]:
        """A layer of our own in the parsed network: who read the value of that name reads its output."""
        tensors = {t.name: t for t in (self.network.get_input(i) for i in range(self.network.num_inputs))}
        parsed = self.layers()
        tensors |= {t.name: t for r in parsed for t in (r.get_output(i) for i in range(r.num_outputs))}
        added, kept = self._add_plugin(layer, tensors)
        for reader in parsed:
            for i in range(reader.num_inputs):
                read = reader.get_input(i)
                if read is not None and read.name == layer.outputs[0]:
                    reader.set_input(i, added.get_output(0))
        return kept

    def _add_plugin(self, layer: PluginLayer, tensors: dict[str, Any]) -> tuple[Any, Mapping[str, Array]]:
        """The layer over `tensors` by name, its weights as constants of the network, which must outlive it."""
        kept: dict[str, Array] = {}
        for name in dict.fromkeys(n for n in layer.inputs if n in self.graph.weights):
            weight = self.graph.weights[name]
            kept[name] = array = np.ascontiguousarray(weight.load())
            values = self._trt.Weights(getattr(self._trt, array.dtype.name), array.ctypes.data, array.size)
            tensors[name] = self.network.add_constant(weight.shape, values).get_output(0)
        plugin = self._library.plugin(layer.creator, layer.fields)
        added = plugin and self.network.add_plugin_v3([tensors[name] for name in layer.inputs], [], plugin)
        if not added:
            raise ExportError(
                f"{self._library.name} does not take {layer.creator} of graph '{self.graph.name}' as a plugin: "
                f"{self._problems()}"
            )
        return added, kept

    def layers(self) -> list[Any]:
        return [self.network.get_layer(i) for i in range(self.network.num_layers)]

    def _attentions(self) -> list[Any]:
        found = []
        for layer in self.layers():
            if layer.type == self._trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = self._trt.IAttentionInputLayer  # the binding hands out the base class
                found.append(layer.attention)
        return found

    def _unscale(self, attention: Any) -> None:
        """Take out the parser's multiplications by one: on the keys it would walk the whole cache in every step."""
        makers = {layer.get_output(i).name: layer for layer in self.layers() for i in range(layer.num_outputs)}
        for i in (0, 1):
            maker = makers.get(attention.get_input(i).name)
            if maker is None or maker.type != self._trt.LayerType.ELEMENTWISE:
                continue
            factor = makers.get(maker.get_input(1).name)
            if factor is not None and factor.type == self._trt.LayerType.CAST:
                factor = makers.get(factor.get_input(0).name)
            if factor is not None and _is_one(self._trt, factor):
                attention.set_input(i, maker.get_input(0))

    # -- checks

    def check(self, precision: str) -> None:
        """That nothing was lost on the way: caches in place, float16 where it was asked for.

        Raises:
            ExportError: the layers that are not as they must be.
        """
        wrong = [*self._caches_not_in_place()] if self.graph.plugin is None else [*self._other_outputs()]
        if precision == "fp16":
            wrong += self._float32_layers()
        if wrong:
            raise ExportError(f"graph '{self.graph.name}' was parsed into something else: {'; '.join(wrong[:5])}")

    def _caches_not_in_place(self) -> list[str]:
        updated = {}
        for layer in self.layers():
            if layer.type == self._trt.LayerType.KV_CACHE_UPDATE:
                updated[layer.get_input(0).name] = layer.get_output(0)
        wrong = []
        for name in self.graph.inputs:
            if re.match(r"(key|value)_cache\.", name):
                out = updated.get(name)
                if out is None or not out.is_network_output or out.name != name.replace("_cache.", "_cache_out."):
                    wrong.append(f"cache '{name}' is not updated in place")
        return wrong

    def _other_outputs(self) -> list[str]:
        """Outputs of a plugin that are not what the border says: the library and this package do not agree."""
        found = {(t := self.network.get_output(i)).name: t for i in range(self.network.num_outputs)}
        return [
            f"'{name}' is {found[name].dtype} {list(found[name].shape)}, expected {spec.dtype} {list(spec.shape)}"
            for name, spec in self.graph.outputs.items()
            if found[name].dtype != getattr(self._trt, spec.dtype) or tuple(found[name].shape) != spec.shape
        ]

    def _float32_layers(self) -> list[str]:
        heavy = {getattr(self._trt.LayerType, n) for n in _HEAVY if hasattr(self._trt.LayerType, n)}
        return [
            f"{layer.name} runs in float32"
            for layer in self.layers()
            if layer.type in heavy and layer.get_input(0).dtype == self._trt.float32
        ]

    # -- building

    def build(
        self,
        profiles: Sequence[Profile],
        sm: int,
        *,
        precision: str,
        present: int | None = None,
        timing_cache: bytes = b"",
        progress: Any = None,
    ) -> tuple[Plan, bytes]:
        """-> the plan and the timing cache, longer now. Attention is left whole where a kernel of the library fits."""
        fits = bool(self.attentions) and all(self._has_kernel(a) for a in self.attentions)
        for decompose in (False, True) if fits else (True,):
            for attention in self.attentions:
                attention.decomposable = decompose
            config = self._config(profiles, sm, precision, present, progress)
            cache = self._load_timing(config, timing_cache)
            plan = self._builder.build_serialized_network(self.network, config)
            if plan is not None or not self.attentions or "decomposable" not in self._problems():
                break
            self._log.errors.clear()
        if plan is None:
            raise ExportError(
                f"{self._library.name} cannot build graph '{self.graph.name}' for SM {sm}: {self._problems()}"
            )
        how = ("decomposed" if decompose else "fused") if self.attentions else ""
        updates = sum(layer.type == self._trt.LayerType.KV_CACHE_UPDATE for layer in self.layers())
        return Plan(bytes(plan), how, updates), bytes(cache.serialize()) if cache is not None else b""

    def _has_kernel(self, attention: Any) -> bool:
        """What was found by trying (docs/NOTES.md); where it is wrong, the build is tried a second time."""
        query = attention.get_input(0)
        head = tuple(query.shape)[-1]
        return bool(query.dtype == self._trt.float16 and (head < 0 or head % _KERNEL_HEADS == 0))

    def _config(self, profiles: Sequence[Profile], sm: int, precision: str, present: int | None, progress: Any) -> Any:
        config = self._builder.create_builder_config()
        config.builder_optimization_level = _OPTIMIZATION_LEVEL
        self._library.set_target(config, sm, present)
        if self.graph.plugin is not None:
            self._library.allow_plugins(config)
        if precision == "fp32":
            config.clear_flag(self._trt.BuilderFlag.TF32)  # its 10 bits are not float32
        if progress is not None:
            config.progress_monitor = progress
        for profile in profiles:
            config.add_optimization_profile(self._profile(profile))
        return config

    def _profile(self, profile: Profile) -> Any:
        made = self._builder.create_optimization_profile()
        for i in range(self.network.num_inputs):
            tensor = self.network.get_input(i)
            if tensor.is_shape_tensor:
                made.set_shape_input(tensor.name, *([v] for v in profile.values[tensor.name]))
            elif -1 in tuple(tensor.shape):
                made.set_shape(tensor.name, *profile.shapes(self.graph.inputs[tensor.name]))
        return made

    def _load_timing(self, config: Any, saved: bytes) -> Any:
        if not self._library.times_kernels:
            return None
        cache = config.create_timing_cache(saved)
        config.set_timing_cache(cache, ignore_mismatch=True)
        return cache

    def inputs(self) -> list[str]:
        return [self.network.get_input(i).name for i in range(self.network.num_inputs)]

    def shape_inputs(self) -> list[str]:
        """Inputs whose values set sizes: the runtime reads them on the host."""
        found = (self.network.get_input(i) for i in range(self.network.num_inputs))
        return [t.name for t in found if t.is_shape_tensor]

    def _problems(self) -> str:
        """What the library said, without the line that only says there is no GPU to build on."""
        said = [e for e in dict.fromkeys(self._log.errors) if "cudaError 35" not in e and "cudaError 100" not in e]
        return " | ".join(said or self._log.errors)[:1000] or "it does not say why"


def _is_one(trt: Any, layer: Any) -> bool:
    if layer.type != trt.LayerType.CONSTANT:
        return False
    layer.__class__ = trt.IConstantLayer
    return bool(np.all(np.asarray(layer.weights, np.float32) == 1))


def _parser_words(error: Any) -> str:
    where = f"node '{error.node_name()}' ({error.node_operator()})" if error.node_name() else "the model"
    said = re.sub(r"^In node \d+ with name: .*? and operator: .*?: ", "", " ".join(error.desc().split()))
    return f"{where}: {said.partition(' [checkMacros')[0][:300]}"
