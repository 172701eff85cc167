"""A bundle of a few KB, and what a test does to it."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import bundle as bundle_module
from edge_sdk import manifest as manifest_module
from edge_sdk.bundle import Bundle
from edge_sdk.config import FlowConfig, VocoderConfig, WaveformConfig
from edge_sdk.errors import BundleError
from edge_sdk.export.bundle_writer import BundleWriter
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, MANIFEST_NAME, GraphEntry, Manifest

VOICE = np.linspace(-1, 1, 8, dtype=np.float32)
WEIGHT = np.arange(1024, dtype=np.float32).reshape(32, 32)

FLOW = FlowConfig(
    codebook_size=16, n_mels=4, token_rate_hz=25.0, frames_per_token=2, lookahead_tokens=3, speaker_dim=8, dim=8,
    depth=1, heads=1, head_dim=8, chunk_frames=50, position_kernel=3, cfg_rate=0.7, steps=(10,), noise_frames=5,
)  # fmt: skip
WAVEFORM = WaveformConfig(
    n_mels=4, sample_rate=24000, base_channels=8, f0_channels=8, harmonics=8, sine_amplitude=0.1, noise_sigma=0.003,
    voiced_threshold_hz=10.0, upsample_rates=(8, 5, 3), upsample_kernels=(16, 11, 7), stft_n_fft=16, stft_hop=4,
    resblock_kernels=(3,), resblock_dilations=((1,),), source_resblock_kernels=(7,), source_resblock_dilations=((1,),),
    lrelu_slope=0.1, audio_limit=0.99, lookahead_frames=4, f0_lookahead_frames=3, source_noise_skip=0,
)  # fmt: skip


def adder() -> GraphBuilder:
    """y = x + w: the smallest graph with an external data file."""
    g = GraphBuilder("adder")
    x = g.input("x", "float32", (32, 32))
    g.output(g.op("Add", x, g.weight(Weight.of("w", WEIGHT))), "y", "float32", (32, 32))
    return g


def doubler() -> GraphBuilder:
    """y = 2 x, without external data."""
    g = GraphBuilder("doubler")
    g.output(g.op("Mul", g.input("x", "float32", ("N",)), g.scalar(2.0)), "y", "float32", ("N",))
    return g


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_small(target: Path) -> Path:
    """A bundle of a few KB that has one of everything but a model."""
    writer = BundleWriter(target, "test", resume=False, overwrite=False)
    graphs = {}
    for g in (adder(), doubler()):
        data = g.save(writer.path(f"{g.name}.onnx"), writer.path(f"{g.name}.bin")) > 0
        writer.finish(f"{g.name}.onnx", *[f"{g.name}.bin"] * data)
        graphs[g.name] = GraphEntry(
            file=f"{g.name}.onnx",
            data=f"{g.name}.bin" * data,
            precision="fp32",
            ops=g.ops_used,
            inputs=tuple(s.to_json() for s in g.inputs),
            outputs=tuple(s.to_json() for s in g.outputs),
        )
    writer.write("voices/alto.npy", npy(VOICE))
    writer.write("noise.npy", npy(np.zeros((4, 5), np.float32)))
    writer.write("chat_template.jinja", b"{{ messages }}")
    writer.write("numbers.json", b"[1, 2]")
    vocoder = VocoderConfig(FLOW, WAVEFORM, {"alto": "voices/alto.npy"}, "alto")
    writer.write_manifest(
        Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            name="small",
            model=None,
            vocoder=vocoder,
            graphs=graphs,
            files=writer.files,
            chat_template="chat_template.jinja",
            noise="noise.npy",
        )
    )
    return writer.publish(one_file=False)


def change(folder: Path, edit: Callable[[dict[str, Any]], Any], *, rehash: bool = False) -> None:
    """Edit the manifest as someone who means to: with the checksum, and on request the hashes, put right again."""
    value = json.loads((folder / MANIFEST_NAME).read_text())
    value.pop("checksum")
    edit(value)
    if rehash:
        for name in value["files"]:
            data = (folder / name).read_bytes()
            value["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    value["checksum"] = manifest_module._checksum(value)
    (folder / MANIFEST_NAME).write_text(json.dumps(value))


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Put other content into a file of the bundle, hash and all."""
    (folder / name).write_bytes(data)
    change(folder, lambda m: None, rehash=True)


def refuses(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert "small" in str(caught.value) or ".onnx" in str(caught.value), "a message names the bundle or the file"


def settle() -> None:
    """Until what was just written counts as known."""
    time.sleep(1.2 * bundle_module._SETTLED_NS / 1e9)
