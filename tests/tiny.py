"""Small random checkpoints, and how tests spoil them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.export.random_checkpoint import (
    EncoderSpec,
    LanguageSpec,
    SpeechIdSpec,
    StackSpec,
    write_language_checkpoint,
)

# 80 KB on the disk. Every size differs from every other, so that a mix-up shows.
SPEC = LanguageSpec(
    text=StackSpec(hidden=20, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=28, rope_theta=1e4),
    head=StackSpec(hidden=12, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=18, rope_theta=1e5),
    encoder=EncoderSpec(d_model=16, layers=1, heads=2, ffn=22),
    speech=SpeechIdSpec.after(36),
    text_tokens=256,
    vocab_size=276,
)

Stored = tuple[str, tuple[int, ...], bytes]  # dtype as safetensors names it, shape, raw bytes


def write(folder: Path, seed: int = 1, *, dtype: str = "float32", shards: int = 1, **changes: Any) -> Path:
    """A checkpoint of SPEC with `changes`."""
    write_language_checkpoint(folder, dataclasses.replace(SPEC, **changes), seed, dtype=dtype, shards=shards)
    return folder


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def read_shard(path: Path) -> dict[str, Stored]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (e["dtype"], tuple(e["shape"]), data[start + e["data_offsets"][0] : start + e["data_offsets"][1]])
        for name, e in header.items()
    }


def write_shard(path: Path, tensors: Mapping[str, Stored]) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Stored]], Any], shard: str = "model.safetensors") -> None:
    tensors = read_shard(folder / shard)
    edit(tensors)
    write_shard(folder / shard, tensors)


def zeros(dtype: str, *shape: int) -> Stored:
    size = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "BOOL": 1}[dtype]
    return dtype, shape, bytes(size * math.prod(shape))


def with_value(stored: Stored, value: float, at: int) -> Stored:
    """The same tensor with one value replaced; `at` counts values."""
    dtype, shape, data = stored
    if dtype == "BF16":
        item = (np.float32(value).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    else:
        item = np.asarray(value, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
    return dtype, shape, data[: at * len(item)] + item + data[(at + 1) * len(item) :]
