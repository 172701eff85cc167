"""Named arrays in one file, in the safetensors layout: an 8-byte length, a JSON header, then raw tensor bytes.

Checkpoint shards are read through this lazily, one tensor at a time; saved sessions are written and read with it.
The file is treated as untrusted: the header is checked completely before any tensor is touched.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edge_sdk.errors import Error

MAX_HEADER_BYTES = 100 << 20  # the limit the safetensors library sets as well
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # raw bits; `read` widens them to float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies. `begin` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_float(self) -> bool:
        return self.dtype in ("F64", "F32", "F16", "BF16")

    @property
    def storage(self) -> np.dtype[Any]:
        """Of one value as it is stored: bfloat16 as uint16."""
        return _DTYPES[self.dtype]


def widen_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint16 bit patterns of bfloat16 values -> the same values as float32 (exact)."""
    wide = bits.astype(np.uint32)
    wide <<= 16  # in place: a large tensor is held once
    return wide.view(np.float32)


def narrow_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 values -> bit patterns of the nearest bfloat16 (of two, the even one), uint16. NaN is not kept."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    return odd.astype("<u2")


class TensorFile:
    """A memory-mapped safetensors file. `read` copies one tensor out; nothing else stays in memory."""

    def __init__(self, path: str | os.PathLike[str], error: type[Error] = Error) -> None:
        self.path = Path(path)
        self._error = error
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as e:
            raise error(f"cannot open '{self.path}': {e.strerror or e}") from e
        if self._map is None:
            raise error(f"'{self.path}' is empty")
        self.metadata, self.entries = _parse_header(memoryview(self._map), str(self.path), error)

    @property
    def header(self) -> bytes:
        """What stands before the first tensor."""
        if self._map is None:
            raise self._error(f"'{self.path}' is closed")
        return self._map[: min((entry.begin for entry in self.entries.values()), default=len(self._map))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def raw(self, name: str) -> memoryview:
        """The bytes of one tensor, mapped."""
        entry = self.entries[name]
        if self._map is None:
            raise self._error(f"'{self.path}' is closed")
        return memoryview(self._map)[entry.begin : entry.end]

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as a new array; bfloat16 becomes float32, all else keeps its type."""
        entry = self.entries[name]
        array = np.frombuffer(self.raw(name), dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
        return widen_bfloat16(array) if entry.dtype == "BF16" else array.copy()

    def pieces(self, name: str, values: int) -> Iterator[np.ndarray[Any, Any]]:
        """One tensor in order, at most `values` values at once, flat and as stored (bfloat16 as uint16).

        Read from the file and not through the map, whose pages would count as memory until something else needs it.
        """
        entry = self.entries[name]
        step = values * entry.storage.itemsize
        try:
            with self.path.open("rb", buffering=0) as file:
                for at in range(entry.begin, entry.end, step):
                    data = os.pread(file.fileno(), min(step, entry.end - at), at)
                    if len(data) != min(step, entry.end - at):
                        raise self._error(f"'{self.path}' became shorter while it was read")
                    yield np.frombuffer(data, entry.storage)
        except OSError as e:
            raise self._error(f"cannot read '{self.path}': {e.strerror or e}") from e

    def close(self) -> None:
        if self._map is not None:
            with contextlib.suppress(BufferError):  # a caller still holds a view; the map goes when the view does
                self._map.close()
            self._map = None


def _parse_header(data: memoryview, where: str, error: type[Error]) -> tuple[dict[str, str], dict[str, Entry]]:
    if len(data) < 8:
        raise error(f"'{where}' is cut short: {len(data)} bytes, a tensor file has at least 8")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > len(data):
        raise error(
            f"'{where}' is cut short or not a safetensors file: it announces a header of {header_bytes} bytes, "
            f"the file has {len(data)}"
        )
    try:
        header = json.loads(bytes(data[8 : 8 + header_bytes]))
    except (ValueError, RecursionError) as e:
        raise error(f"'{where}' has a header that is not JSON: {e}") from e
    if not isinstance(header, dict):
        raise error(f"'{where}' has a header that is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"'{where}': __metadata__ must map names to strings")
    start = 8 + header_bytes
    entries = {name: _parse_entry(name, value, start, where, error) for name, value in header.items()}
    _check_layout(entries, start, len(data), where, error)
    return metadata, entries


def _parse_entry(name: str, value: Any, start: int, where: str, error: type[Error]) -> Entry:
    def is_count(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= 0

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise error(f"'{where}': tensor '{name}' must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise error(f"'{where}': tensor '{name}' has dtype {dtype!r}, supported are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(is_count(d) for d in shape):
        raise error(f"'{where}': tensor '{name}' has a malformed shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(o) for o in offsets):
        raise error(f"'{where}': tensor '{name}' has malformed data_offsets {offsets!r}")
    want = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != want:
        raise error(
            f"'{where}': tensor '{name}' of shape {shape} and dtype {dtype} needs {want} bytes, "
            f"its data_offsets give {offsets[1] - offsets[0]}"
        )
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _check_layout(entries: Mapping[str, Entry], start: int, size: int, where: str, error: type[Error]) -> None:
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise error(
                f"'{where}': tensor '{name}' begins at byte {entry.begin}, expected {at} (a hole or an overlap)"
            )
        at = entry.end
    if at != size:
        raise error(f"'{where}' has {size} bytes, its header describes {at}: the file is cut short or has a tail")


def write_tensors(
    file: IO[bytes], tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays in the safetensors layout to an open binary file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in tensors.items():
        dtype = _NAMES.get(_little_endian(array.dtype))
        if dtype is None:
            raise Error(f"tensor '{name}' has dtype {array.dtype}, which a tensor file cannot hold")
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in tensors.values():
        file.write(np.ascontiguousarray(array, _little_endian(array.dtype)).data if array.size else b"")


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype
