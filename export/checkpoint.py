"""A Fun-Audio-Chat checkpoint folder: configuration files and lazily read safetensors shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import CheckpointError
from edge_sdk.export.weights import Weights
from edge_sdk.tensorfile import Entry, TensorFile

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SCAN_BYTES = 1 << 22
_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}

Array = np.ndarray[Any, Any]


class Checkpoint:
    """Tensors by name over any number of shards. Nothing but headers is in memory until `read`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            found = self.path.is_dir()
        except OSError as e:
            raise CheckpointError(f"cannot read '{self.path}': {e.strerror or e}") from e
        if not found:
            raise CheckpointError(f"there is no checkpoint folder at '{self.path}'")
        self._files = [TensorFile(p, CheckpointError) for p in _shard_paths(self.path)]
        self._where: dict[str, TensorFile] = {}
        for file in self._files:
            for name in file:
                if name in self._where:
                    raise CheckpointError(f"tensor '{name}' is in both '{self._where[name].path}' and '{file.path}'")
                self._where[name] = file
        self._check_index()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    @property
    def index(self) -> str | None:
        """Name of the index file, None where all tensors are in one file."""
        return None if (self.path / _SINGLE).exists() else _INDEX

    @property
    def shards(self) -> tuple[TensorFile, ...]:
        """The safetensors files, in the order of their names."""
        return tuple(self._files)

    def shard(self, name: str) -> TensorFile:
        """The file that a tensor is in."""
        return self._where[name]

    def entry(self, name: str) -> Entry:
        return self._where[name].entries[name]

    def read(self, name: str) -> Array:
        """One tensor as float32, [shape as stored]."""
        return self._where[name].read(name).astype(np.float32, copy=False)

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """A configuration file as a dict; {} if it is absent and not required."""
        return read_json(self.path / name, required=required)

    def text(self, name: str) -> str | None:
        """A text file of the folder, None if there is none."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as e:
            raise CheckpointError(f"cannot read '{self.path / name}': {e}") from e

    def check(self, weights: Weights) -> None:
        """Compare with what the model needs. Raises one CheckpointError that names every difference.

        Reads every tensor once to find values that are not finite.
        """
        problems = [f"missing: {name}" for name in weights.required if name not in self]
        known = set(weights.required) | set(weights.unused)
        problems += [f"not part of this model: {name}" for name in self._where if name not in known]
        for name, shape in {**weights.unused, **weights.required}.items():
            if name in self:
                problems += self._check_tensor(name, shape)
        if problems:
            shown = problems if len(problems) <= 50 else [*problems[:50], f"... and {len(problems) - 50} more"]
            raise CheckpointError(f"checkpoint '{self.path}' does not fit its config.json:\n  " + "\n  ".join(shown))

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> list[str]:
        entry = self.entry(name)
        if entry.shape != shape:
            return [f"wrong shape: {name} is {list(entry.shape)}, config.json asks for {list(shape)}"]
        if not entry.is_float:
            return [f"wrong dtype: {name} is {entry.dtype}, expected BF16, F16, F32 or F64"]
        if not _all_finite(self._where[name].raw(name), entry.dtype):
            return [f"not finite: {name} holds NaN or infinity"]
        return []

    def _check_index(self) -> None:
        if not (self.path / _INDEX).exists() or (self.path / _SINGLE).exists():
            return
        listed = self.json(_INDEX).get("weight_map", {})
        absent = sorted(name for name, shard in listed.items() if self._shard_of(name) != shard)
        if absent:
            raise CheckpointError(
                f"'{self.path / _INDEX}' lists tensors that their shard does not hold: {', '.join(absent[:20])}"
            )

    def _shard_of(self, name: str) -> str | None:
        return self._where[name].path.name if name in self._where else None

    def close(self) -> None:
        for file in self._files:
            file.close()


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        if not required:
            return {}
        raise CheckpointError(f"'{path}' is missing: is this a Fun-Audio-Chat checkpoint folder?") from e
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"cannot read '{path}': {e}") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object")
    return value


def _shard_paths(folder: Path) -> list[Path]:
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if not (folder / _INDEX).exists():
        raise CheckpointError(f"'{folder}' has neither {_SINGLE} nor {_INDEX}")
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"'{folder / _INDEX}' has no usable weight_map")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"'{folder / _INDEX}' names shards outside the folder: {', '.join(outside)}")
    missing = [name for name in names if not _exists(folder / name)]
    if missing:
        raise CheckpointError(f"'{folder}' lacks the shards {', '.join(missing)}, which its index lists")
    return [folder / name for name in names]


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file system takes
        return False
    return True


def _all_finite(raw: memoryview, dtype: str) -> bool:
    """Look for NaN and infinity in pieces, without widening the tensor."""
    for at in range(0, len(raw), _SCAN_BYTES):
        piece = raw[at : at + _SCAN_BYTES]
        if dtype == "BF16":
            if np.any((np.frombuffer(piece, np.uint16) & 0x7F80) == 0x7F80):
                return False
        elif not np.isfinite(_as_float32(np.frombuffer(piece, _FLOATS[dtype]))).all():
            return False
    return True


def _as_float32(values: Array) -> Array:
    """What `read` makes of the values: a float64 can be too large for it."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)
