"""Writes a bundle with nothing but a vocoder in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.export.graphs.builder import GraphBuilder
from edge_sdk.export.vocoder import load_vocoder
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, MANIFEST_NAME, FileEntry, GraphEntry, Manifest, manifest_bytes


def export_folder(folder: Path, output: Path, voices: Mapping[str, Path], **options: Any) -> Path:
    """`options` as in `load_vocoder`."""
    part = load_vocoder(folder, voices, **options)
    output.mkdir()
    graphs = {name: _write_graph(output, name, graph) for name, graph in part.graphs.items()}
    for name, file in part.config.voices.items():
        (output / file).parent.mkdir(exist_ok=True)
        np.save(output / file, part.voices[name])
    np.save(output / part.noise_name, part.noise())
    files = {p.relative_to(output).as_posix(): _entry(p) for p in output.rglob("*") if p.is_file()}
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name="vocoder-test",
        model=None,
        vocoder=part.config,
        graphs=graphs,
        files=files,
        noise=part.noise_name,
    )
    (output / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return output


def _write_graph(output: Path, name: str, graph: GraphBuilder) -> GraphEntry:
    data_bytes = graph.save(output / f"{name}.onnx", output / f"{name}.bin")
    return GraphEntry(
        file=f"{name}.onnx",
        data=f"{name}.bin" if data_bytes else "",
        precision="fp32",
        ops=graph.ops_used,
        inputs=tuple(spec.to_json() for spec in graph.inputs),
        outputs=tuple(spec.to_json() for spec in graph.outputs),
    )


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))
