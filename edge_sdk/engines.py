"""Engines beside a bundle: where they lie, the stamp that says what they were built from, and what makes them unfit.

A bundle never changes, so engines have a stamp of their own: `engines.json`, in a folder per library version and GPU
architecture. docs/bundle.md has the layout.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.bundle import Bundle
from edge_sdk.config import Section
from edge_sdk.errors import BundleError, RuntimeUnavailableError
from edge_sdk.manifest import FileEntry
from edge_sdk.storage import DirectoryStorage, check_name
from edge_sdk.tensors import TensorSpec

FORMAT = "edge_sdk.engines"
FORMAT_VERSION = 1
STAMP_NAME = "engines.json"
_CHECKSUM = "checksum"
_HASH_BLOCK = 1 << 22
_MAX_STAMP_BYTES = 16 << 20


@dataclass(frozen=True)
class EngineEntry(Section):
    """One plan and its border. Types may be narrower than the graph's (float16 caches), capacities have a size.

    Attributes:
        host_inputs: inputs whose values set sizes: read on the host before a run.
        profiles: name, dims and values of every optimization profile, in the plan's order.
        attention: "fused", "decomposed" or "".
        plugins: layers of our own in it (docs/plugins.md), by creator.
    """

    file: str
    sha256: str
    size: int
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    host_inputs: tuple[str, ...] = ()
    profiles: tuple[dict[str, Any], ...] = ()
    attention: str = ""
    kv_updates: int = 0
    plugins: tuple[str, ...] = ()

    def input_specs(self) -> dict[str, TensorSpec]:
        return {s.name: s for s in map(TensorSpec.from_json, self.inputs)}

    def output_specs(self) -> dict[str, TensorSpec]:
        return {s.name: s for s in map(TensorSpec.from_json, self.outputs)}


@dataclass(frozen=True)
class EngineStamp(Section):
    """What a folder of engines is.

    Attributes:
        bundle: the sha256 of the manifest of the bundle they were built from.
        sm: GPU architecture, 89 for SM 8.9.
        host_graphs: graphs without an engine, run by onnxruntime on the CPU: TensorRT has no float64.
        no_plugins: why the speech head and grouping are of standard ops, "" where they are plugins.
    """

    format: str
    format_version: int
    runtime: str
    runtime_version: str
    sm: int
    bundle: str
    precision: str
    context_tokens: int
    vocoder_frames: int
    one_profile: bool
    graphs: dict[str, EngineEntry]
    host_graphs: tuple[str, ...] = ()
    no_plugins: str = ""
    tools: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.graphs.values():
            check_name(entry.file, STAMP_NAME)


def engines_root(bundle: Bundle) -> Path:
    """Where a bundle's engines lie: inside a directory, beside a single file."""
    return bundle.path / "engines" if bundle.path.is_dir() else bundle.path.with_name(f"{bundle.path.name}.engines")


def folder_name(runtime: str, version: str, sm: int) -> str:
    return f"{runtime}-{version}-sm{sm}"


def stamp_bytes(stamp: EngineStamp) -> bytes:
    value = stamp.to_json()
    return (json.dumps({**value, _CHECKSUM: _checksum(value)}, indent=1) + "\n").encode()


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class EngineFolder:
    """A folder of engines, opened. Plans are handed out once their hash was found to be the stamp's."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BundleError: its stamp is missing, damaged or of a newer format.
        """
        self.path = path
        self._storage = DirectoryStorage(path)
        self.stamp = self._read_stamp()

    def _read_stamp(self) -> EngineStamp:
        size = self._storage.size(STAMP_NAME)
        if size is None or size > _MAX_STAMP_BYTES:
            raise BundleError(f"'{self.path}' holds no engines: it has no {STAMP_NAME}")
        try:
            value = json.loads(bytes(self._storage.map(STAMP_NAME)))
        except (ValueError, RecursionError) as e:
            raise BundleError(f"'{self.path / STAMP_NAME}' is not JSON ({e}); {_REBUILD}") from e
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise BundleError(f"'{self.path / STAMP_NAME}' does not say format '{FORMAT}'; {_REBUILD}")
        version = value.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version != FORMAT_VERSION:
            raise BundleError(
                f"the engines in '{self.path}' have format version {version}, this edge_sdk uses {FORMAT_VERSION}; "
                + _REBUILD
            )
        if value.pop(_CHECKSUM, None) != _checksum(value):
            raise BundleError(f"'{self.path / STAMP_NAME}' is damaged or was edited; {_REBUILD}")
        return EngineStamp.from_json(value, str(self.path / STAMP_NAME))

    def stale(self, bundle: Bundle) -> str:
        """ "" if these engines are whole and of `bundle`, else why not."""
        if self.stamp.bundle != bundle.digest:
            return "they were built from another bundle"
        for name, entry in self.stamp.graphs.items():
            if name not in bundle.manifest.graphs:
                return f"the bundle has no graph '{name}'"
            if self._storage.size(entry.file) != entry.size:
                return f"'{entry.file}' is missing or has another size"
        return ""

    def plan(self, graph: str) -> memoryview:
        """A plan's bytes, mapped.

        Raises:
            BundleError: it is damaged. Plans hold GPU programs, so one that differs is never handed on.
        """
        entry = self.stamp.graphs[graph]
        data = self._storage.map(entry.file)
        digest = hashlib.sha256()
        for at in range(0, len(data), _HASH_BLOCK):
            digest.update(data[at : at + _HASH_BLOCK])
        if FileEntry(digest.hexdigest(), len(data)) != FileEntry(entry.sha256, entry.size):
            raise BundleError(f"engine '{self.path / entry.file}' is damaged (its hash differs); {_REBUILD}")
        return data


_REBUILD = "build the engines again with `edge-sdk build-engine`"


def find_engines(bundle: Bundle, runtime: str, version: str, sm: int) -> EngineFolder:
    """The engines of `bundle` for this library, version and GPU.

    Raises:
        RuntimeUnavailableError: there are none that fit: what there is, and the command that builds them.
    """
    root = engines_root(bundle)
    folder = root / folder_name(runtime, version, sm)
    build = f"edge-sdk build-engine {bundle.path} --runtime {runtime} --sm {sm}"
    if not folder.is_dir():
        raise RuntimeUnavailableError(
            f"no engines for {runtime} {version} on SM {sm}{_others(root)}; build them: {build}"
        )
    try:
        found = EngineFolder(folder)
        stamp = found.stamp
        if (stamp.runtime, stamp.runtime_version, stamp.sm) != (runtime, version, sm):
            mismatch = f"they are for {stamp.runtime} {stamp.runtime_version} on SM {stamp.sm}"
        else:
            mismatch = found.stale(bundle)
    except BundleError as e:
        raise RuntimeUnavailableError(f"the engines in '{folder}' cannot be used: {e}") from e
    if mismatch:
        raise RuntimeUnavailableError(f"the engines in '{folder}' do not fit: {mismatch}; build them again: {build}")
    return found


def _others(root: Path) -> str:
    try:
        names = sorted(p.name for p in root.iterdir() if (p / STAMP_NAME).is_file())
    except OSError:
        names = []
    return f" (there are {', '.join(names)})" if names else ""
