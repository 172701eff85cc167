"""Checkpoint folders: tensors streamed into safetensors files one block at a time, published in one step."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import ExportError
from edge_sdk.export.random_checkpoint.draws import Array, RandomTensor
from edge_sdk.tensorfile import narrow_bfloat16

Progress = Callable[[str, int, int], None]  # file name, bytes written, bytes in all
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end; nothing is left behind if that fails.

    Raises:
        ExportError: `path` exists and is not an empty folder, or the disk says no.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"'{target}' exists and is not an empty folder; choose another place or remove it")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    parent_is_new = not target.parent.exists()
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(target)
    except OSError as e:
        raise ExportError(f"cannot write '{target}': {e.strerror or e}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if parent_is_new:
            with contextlib.suppress(OSError):  # it has something in it: the finished folder
                target.parent.rmdir()


def write_safetensors(
    folder: Path,
    stem: str,
    tensors: Sequence[RandomTensor],
    seed: int,
    *,
    dtype: str = "float32",
    shards: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `stem`.safetensors, or `stem`-00001-of-0000N.safetensors and an index, tensors sorted by name.

    Raises:
        ExportError: an unknown dtype, more shards than tensors, a disk without the space for it.
    """
    if dtype not in DTYPES:
        raise ExportError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not 1 <= shards <= len(tensors):
        raise ExportError(f"{shards} shards were asked for; from 1 to {len(tensors)} (one tensor each) are possible")
    ordered = sorted(tensors, key=lambda t: t.name)
    total = sum(_size(t, dtype) for t in ordered)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ExportError(f"{total / 1e9:.1f} GB are needed for '{folder.parent}', {free / 1e9:.1f} GB are free there")
    if shards == 1:
        _write_file(folder / f"{stem}.safetensors", ordered, seed, dtype, progress)
        return
    where: dict[str, str] = {}
    for n, part in enumerate(_split(ordered, shards)):
        name = f"{stem}-{n + 1:05}-of-{shards:05}.safetensors"
        _write_file(folder / name, part, seed, dtype, progress)
        where |= {t.name: name for t in part}
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _size(tensor: RandomTensor, dtype: str) -> int:
    return math.prod(tensor.shape) * DTYPES[dtype][1]


def _split(tensors: Sequence[RandomTensor], shards: int) -> Iterator[list[RandomTensor]]:
    """Runs of about equal size, none empty."""
    left, begin = sum(math.prod(t.shape) for t in tensors), 0
    for shard in range(shards, 0, -1):
        end, size = begin, 0
        most = len(tensors) - (shard - 1)  # leaves a tensor for each shard that follows
        while end < most and (end == begin or size + math.prod(tensors[end].shape) // 2 < left / shard):
            size += math.prod(tensors[end].shape)
            end += 1
        end = len(tensors) if shard == 1 else end
        yield list(tensors[begin:end])
        left, begin = left - size, end


def _write_file(path: Path, tensors: Sequence[RandomTensor], seed: int, dtype: str, progress: Progress | None) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + _size(tensor, dtype)
        header[tensor.name] = {"dtype": DTYPES[dtype][0], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 0
        for block in (block for tensor in tensors for block in tensor.blocks(seed)):
            done += file.write(np.ascontiguousarray(_convert(block, dtype)).data)
            if progress:
                progress(path.name, done, at)


def _convert(values: Array, dtype: str) -> Array:
    if dtype == "float32":
        return values.astype("<f4", copy=False)
    if dtype == "float16":
        return values.astype("<f2")
    return narrow_bfloat16(values)
