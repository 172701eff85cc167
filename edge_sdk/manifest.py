"""manifest.json: what a bundle contains and what its graphs expect. Format version 1; see docs/bundle.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.config import ModelConfig, Section, VocoderConfig
from edge_sdk.errors import BundleError
from edge_sdk.storage import check_name
from edge_sdk.tensors import TensorSpec

FORMAT = "edge_sdk.bundle"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PRECISIONS = ("fp32", "fp16", "int8", "int4")  # of weights, each narrower than the one before
LANGUAGE_GRAPHS = ("encoder", "backbone", "speech_input", "speech_head")
FUSED_GRAPH = "speech_head_fused"  # the same head as one op of our own; a runtime may lack it
FLOW_GRAPHS = ("flow_tokens", "flow")
WAVEFORM_GRAPHS = ("f0", "waveform")
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class FileEntry(Section):
    sha256: str
    size: int


@dataclass(frozen=True)
class GraphEntry(Section):
    """One ONNX graph: its file, its external data file ("" if none), the narrowest of its weights, the ops it may use,
    and its border."""

    file: str
    data: str
    precision: str
    ops: tuple[str, ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    bytes_read: int = 0  # weights that one run must read whole: sets the bandwidth limit of a step

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise BundleError(f"graph '{self.file}' has precision {self.precision!r}, not of {', '.join(PRECISIONS)}")

    def input_specs(self) -> dict[str, TensorSpec]:
        return {s.name: s for s in map(TensorSpec.from_json, self.inputs)}

    def output_specs(self) -> dict[str, TensorSpec]:
        return {s.name: s for s in map(TensorSpec.from_json, self.outputs)}


@dataclass(frozen=True)
class Manifest(Section):
    format: str
    format_version: int
    name: str
    model: ModelConfig | None  # None: a vocoder-only bundle
    vocoder: VocoderConfig | None
    graphs: dict[str, GraphEntry]
    files: dict[str, FileEntry]
    tokenizer: str = ""
    chat_template: str = ""
    generation: dict[str, Any] = field(default_factory=dict)  # the checkpoint's generation_config.json
    noise: str = ""  # the flow's fixed initial noise, .npy [n_mels, frames]
    selftest: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)  # which weight is stored how, see docs/bundle.md

    def __post_init__(self) -> None:
        named = list(filter(None, (self.tokenizer, self.chat_template, self.noise, self.selftest)))
        for graph in self.graphs.values():
            named += filter(None, (graph.file, graph.data))
        if self.vocoder:
            named += self.vocoder.voices.values()
        for name in self.files:
            check_name(name, self.name)
        for name in named:
            if check_name(name, self.name) not in self.files:
                raise BundleError(f"manifest of '{self.name}' uses '{name}' but lists no hash for it")

    def narrowest(self, graphs: Sequence[str]) -> str:
        """The narrowest precision among those of these graphs that are there."""
        found = [self.graphs[key].precision for key in graphs if key in self.graphs]
        return max(found, key=PRECISIONS.index, default="fp32")


def manifest_bytes(manifest: Manifest) -> bytes:
    """What is written to manifest.json: the manifest and, as its last key, the checksum of the rest."""
    value = manifest.to_json()
    text = json.dumps({**value, _CHECKSUM: _checksum(value)}, ensure_ascii=False, indent=1)
    return (text + "\n").encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Check the format version first, then that nothing was changed, then everything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"bundle '{where}': {MANIFEST_NAME} is not JSON ({e}); the bundle is damaged") from e
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BundleError(f"'{where}' is not an edge_sdk bundle: its {MANIFEST_NAME} does not say format '{FORMAT}'")
    version = value.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"bundle '{where}' has a malformed format_version {version!r}")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"bundle '{where}' has format version {version}, this edge_sdk reads up to {FORMAT_VERSION}: "
            "update edge_sdk, or export the bundle again with this version"
        )
    recorded = value.pop(_CHECKSUM, None)
    if recorded != _checksum(value):
        raise BundleError(
            f"bundle '{where}': {MANIFEST_NAME} is damaged or was edited (its checksum differs). "
            "Copy or export the bundle again"
        )
    return Manifest.from_json(value, f"bundle '{where}': manifest")


def _checksum(value: dict[str, Any]) -> str:
    """Of the content, however it is laid out. It finds damage: who changes a bundle on purpose can change it too."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
