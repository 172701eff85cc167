"""`edge-sdk build-engine`: every graph of a bundle -> plans for one GPU architecture, in a folder with a stamp."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk import __version__
from edge_sdk.bundle import Bundle
from edge_sdk.engines import (
    FORMAT,
    FORMAT_VERSION,
    STAMP_NAME,
    EngineEntry,
    EngineFolder,
    EngineStamp,
    engines_root,
    folder_name,
    stamp_bytes,
)
from edge_sdk.errors import BundleError, Error, ExportError
from edge_sdk.export.engine.graph import Graph, open_graph
from edge_sdk.export.engine.network import Library, Network
from edge_sdk.export.engine.plugin_head import head_graph
from edge_sdk.export.engine.plugin_tokens import group_by_plugin
from edge_sdk.export.engine.precision import PRECISIONS, to_half
from edge_sdk.export.engine.profiles import Capacities, capacities, merged, profiles_of
from edge_sdk.export.engine.quantized import packed_bits
from edge_sdk.export.engine.standard_ops import to_standard_ops
from edge_sdk.manifest import FUSED_GRAPH

log = logging.getLogger("edge_sdk.export")
PLAIN_HEAD = ("speech_head", "speech_input")  # what the fused head is in plain ops
Progress = Callable[[str, int, int], None]  # what is done now, parts done, parts in all


@dataclass(frozen=True)
class EngineOptions:
    """What engines are built for.

    Args:
        precision: "fp16", or "fp32" for comparison; quantized weights stay quantized in both.
        context_tokens: the longest conversation, in backbone positions. Caches have this size.
        vocoder_context_s: seconds of earlier sound the streaming vocoder keeps seeing.
        one_profile: one profile for prefill and decode instead of one each. TensorRT-RTX keeps unquantized products
            twice for two, so this halves the memory of a float16 model; whether it costs speed depends on the GPU.
        force: build also what is up to date.
    """

    precision: str = "fp16"
    context_tokens: int = 2048
    vocoder_context_s: float = 6.0
    one_profile: bool = False
    force: bool = False


@dataclass(frozen=True)
class BuiltEngines:
    """One folder. `built` is False where it was up to date."""

    path: Path
    stamp: EngineStamp
    built: bool


def build_engines(
    bundle: Bundle,
    library: Library,
    sms: Sequence[int],
    options: EngineOptions | None = None,
    *,
    present: int | None = None,
    progress: Progress | None = None,
) -> list[BuiltEngines]:
    """Build the engines of `bundle` for every architecture of `sms` (89 for SM 8.9), into its engines folder.

    Args:
        library: an edge_sdk.runtimes.trt_library.Library.
        present: the architecture of the GPU at hand, None without one.
    Raises:
        ExportError: a graph cannot become an engine, or the disk does not take it. What was complete stays.
    """
    options = options or EngineOptions()
    if options.precision not in PRECISIONS:
        raise ExportError(f"precision '{options.precision}' is not one of {', '.join(PRECISIONS)}")
    for sm in sms:  # before an hour of building
        library.set_target(library.module.Builder(library.logger()).create_builder_config(), sm, present)
    builder = _Builder(bundle, library, options, present, progress or (lambda what, done, total: None))
    return [builder.build(sm) for sm in dict.fromkeys(sms)]


class _Builder:
    def __init__(
        self, bundle: Bundle, library: Library, options: EngineOptions, present: int | None, progress: Progress
    ) -> None:
        self._bundle, self._library, self._options = bundle, library, options
        self._present, self._progress = present, progress
        self._sizes: Capacities = capacities(bundle.manifest, options.context_tokens, options.vocoder_context_s)
        self._root = engines_root(bundle)
        self._no_plugins = library.plugins_missing() if FUSED_GRAPH in bundle.manifest.graphs else ""
        if self._no_plugins:
            log.info("the speech head and grouping are built of standard ops: %s", self._no_plugins)

    def build(self, sm: int) -> BuiltEngines:
        target = self._root / folder_name(self._library.name, self._library.version, sm)
        found = self._up_to_date(target, sm)
        if found is not None and not self._options.force:
            return BuiltEngines(target, found, False)
        partial = target.with_name(f"{target.name}.partial")
        with _disk_errors(target):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                stamp = self._build_all(partial, sm)
                _write(partial / STAMP_NAME, stamp_bytes(stamp))
                _publish(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return BuiltEngines(target, stamp, True)

    def _up_to_date(self, target: Path, sm: int) -> EngineStamp | None:
        """The stamp of what is there, if building it again would give the same."""
        if not target.is_dir():
            return None
        try:
            folder = EngineFolder(target)
            reason = folder.stale(self._bundle)
        except BundleError as e:
            log.info("engines in '%s' are built again: %s", target, e)
            return None
        wanted, stamp = self._stamp(sm, {}), folder.stamp
        for name in (
            "runtime",
            "runtime_version",
            "sm",
            "precision",
            "context_tokens",
            "vocoder_frames",
            "one_profile",
            "tools",
        ):
            if getattr(stamp, name) != getattr(wanted, name):
                reason = reason or f"{name} is {getattr(stamp, name)}, asked for {getattr(wanted, name)}"
        if bool(stamp.no_plugins) != bool(wanted.no_plugins):
            reason = reason or ("plugins can be used now" if stamp.no_plugins else wanted.no_plugins)
        if reason:
            log.info("engines in '%s' are built again: %s", target, reason)
            return None
        return stamp

    def _stamp(self, sm: int, graphs: dict[str, EngineEntry]) -> EngineStamp:
        return EngineStamp(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            runtime=self._library.name,
            runtime_version=self._library.version,
            sm=sm,
            bundle=self._bundle.digest,
            precision=self._options.precision,
            context_tokens=self._options.context_tokens,
            vocoder_frames=self._sizes.vocoder_frames,
            one_profile=self._options.one_profile,
            graphs=graphs,
            host_graphs=tuple(self._host_graphs()),
            no_plugins=self._no_plugins,
            tools={"edge_sdk": __version__},
        )

    def _host_graphs(self) -> list[str]:
        """Graphs in float64, which TensorRT does not have. They are small, and stay on the CPU."""
        graphs = self._bundle.manifest.graphs
        return [k for k, g in graphs.items() if any(s["dtype"] == "float64" for s in (*g.inputs, *g.outputs))]

    def _build_all(self, folder: Path, sm: int) -> EngineStamp:
        keys = engine_keys(self._bundle.manifest.graphs, self._no_plugins)
        keys = [key for key in keys if key not in self._host_graphs()]
        entries = {}
        for n, key in enumerate(keys):
            self._progress(f"SM {sm}: {key}", n, len(keys))
            entries[key] = self._build_one(folder, key, sm, n, len(keys))
        self._progress(f"SM {sm}: done", len(keys), len(keys))
        return self._stamp(sm, entries)

    def _build_one(self, folder: Path, key: str, sm: int, done: int, total: int) -> EngineEntry:
        manifest, precision = self._bundle.manifest, self._options.precision
        graph = engine_graph(self._bundle, key, self._sizes, sm, precision, plugins=not self._no_plugins)
        network = Network(self._library, graph)
        network.check(precision)
        profiles = profiles_of(key, manifest, self._sizes)
        if self._options.one_profile and graph.plugin is None:  # its constants stand there once
            profiles = merged(profiles)
        monitor = self._library.progress(
            lambda phase, step, steps: self._progress(f"SM {sm}: {key}: {phase} {step}/{steps}", done, total)
        )
        timing = self._timing_file(sm)
        saved = timing.read_bytes() if timing.is_file() else b""
        plan, longer = network.build(
            profiles, sm, precision=precision, present=self._present, timing_cache=saved, progress=monitor
        )
        if longer:
            _write(timing, longer)
        _write(folder / f"{key}.plan", plan.data)
        if plan.attention == "decomposed":
            log.info("graph '%s': no attention kernel of %s fits; it is computed step by step", key, self._library.name)
        return EngineEntry(
            file=f"{key}.plan",
            sha256=hashlib.sha256(plan.data).hexdigest(),
            size=len(plan.data),
            inputs=tuple(s.to_json() for s in graph.inputs.values()),
            outputs=tuple(s.to_json() for s in graph.outputs.values()),
            host_inputs=tuple(network.shape_inputs()),
            profiles=tuple(p.to_json() for p in profiles),
            attention=plan.attention,
            kv_updates=plan.kv_updates,
            plugins=tuple(layer.creator for layer in (graph.plugin, graph.inner) if layer),
        )

    def _timing_file(self, sm: int) -> Path:
        return self._root / f"{folder_name(self._library.name, self._library.version, sm)}.timing"


def engine_keys(graphs: Iterable[str], no_plugins: str) -> list[str]:
    """Graphs that are built: the speech head as one plugin, or with a reason against it the plain graphs."""
    left_out = (FUSED_GRAPH,) if no_plugins else PLAIN_HEAD if FUSED_GRAPH in graphs else ()
    return [key for key in graphs if key not in left_out]


def engine_graph(
    bundle: Bundle, key: str, sizes: Capacities, sm: int, precision: str, *, plugins: bool = False
) -> Graph:
    """Graph `key` as it is built for architecture `sm`: standard ops, fixed caches, the wanted precision.

    `plugins`: the backbone groups tokens by one. The fused head is one in any case.
    """
    if key == FUSED_GRAPH:
        return head_graph(bundle, sizes.of(key, bundle.manifest)["capacity"], precision)
    graph = open_graph(bundle, key)
    graph.fix(sizes.of(key, bundle.manifest))
    if plugins:
        group_by_plugin(graph, precision)
    to_standard_ops(graph, packed_bits(sm))
    if precision == "fp16":
        to_half(graph)
    return graph


def _write(path: Path, data: bytes) -> None:
    """Write and force to disk, under a temporary name."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _publish(partial: Path, target: Path) -> None:
    """Give the complete folder its name. A stale one makes room first: nothing that opens it later would take it."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"the disk is full while building '{where}': free some space and build again") from e
        raise ExportError(f"cannot write '{where}': {e.strerror or e}") from e


def parse_architectures(text: str) -> list[int]:
    """ "89,120" or "8.9" -> [89, 120]; SM and sm_ in front are taken too."""
    found = []
    for part in text.replace(" ", "").lower().split(","):
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", part)
        if match is None:
            raise Error(f"'{part}' is no GPU architecture: write 89 for SM 8.9, several with commas")
        found.append(int("".join(match.groups())))
    return found


def describe(stamp: EngineStamp) -> list[list[Any]]:
    """Rows for a table: graph, bytes, attention, native cache updates."""
    rows: list[list[Any]] = [
        [k, e.size, e.attention or ", ".join(e.plugins), e.kv_updates or None] for k, e in stamp.graphs.items()
    ]
    return rows + [[k, None, "onnxruntime, CPU", None] for k in stamp.host_graphs]
