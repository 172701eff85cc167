"""Tensor files: what is written comes back, and a damaged or hostile file is an error of ours."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from edge_sdk.errors import CheckpointError, Error
from edge_sdk.tensorfile import MAX_HEADER_BYTES, TensorFile, widen_bfloat16, write_tensors

DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?")


def written(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    return file.getvalue()


def raw_file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def open_bytes(folder: Path, data: bytes) -> TensorFile:
    (folder / "t.safetensors").write_bytes(data)
    return TensorFile(folder / "t.safetensors", CheckpointError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


ARRAYS = st.sampled_from([*DTYPES, ">f4", ">i2", ">f8"]).flatmap(
    lambda d: st_numpy.arrays(np.dtype(d), st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = TEXT.filter(lambda name: name != "__metadata__")


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(NAMES, ARRAYS, max_size=4),
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8")), max_size=2
    ),
    st.booleans(),
)
def test_what_is_written_comes_back(folder: Path, tensors: Any, metadata: Any, transpose: bool) -> None:
    if transpose:
        tensors = {name: array.T for name, array in tensors.items()}
    file = open_bytes(folder, written(tensors, metadata))
    assert list(file) == list(tensors)
    assert file.metadata == metadata
    for name, array in tensors.items():
        found = file.read(name)
        assert found.dtype == array.dtype.newbyteorder("=")
        assert found.shape == array.shape == file.entries[name].shape
        assert np.ascontiguousarray(array).astype(found.dtype).tobytes() == found.tobytes()
        assert found.flags.writeable
        assert len(file.raw(name)) == array.nbytes
    file.close()


def test_the_layout_is_safetensors() -> None:
    """Written from the format's description: length, JSON, bytes; offsets count from behind the header."""
    data = written({"b": np.array([1, -2], np.int16), "a": np.array(1.5, np.float32)}, {"k": "v"})
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    assert json.loads(data[8 : 8 + size]) == {
        "__metadata__": {"k": "v"},
        "b": {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]},
    }
    assert data[8 + size :] == b"\1\0\xfe\xff" + np.float32(1.5).tobytes()


def test_bfloat16_is_widened_exactly(folder: Path) -> None:
    """All 65536 patterns, infinities and NaN payloads included."""
    bits = np.arange(65536, dtype=np.uint16)
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    found = widen_bfloat16(bits)
    assert np.array_equal(found, expected, equal_nan=True)
    header = {"w": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 131072]}}
    read = open_bytes(folder, raw_file(header, bits.tobytes())).read("w")
    assert read.dtype == np.float32
    assert np.array_equal(read, expected.reshape(256, 256), equal_nan=True)
    assert np.array_equal(read.view(np.uint32) >> 16, bits.reshape(256, 256))


def test_float16_and_float32_keep_their_bits(folder: Path) -> None:
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    single = np.frombuffer(np.random.default_rng(0).bytes(4096), np.float32)
    file = open_bytes(folder, written({"h": half, "s": single}))
    assert file.read("h").tobytes() == half.tobytes()
    assert file.read("s").tobytes() == single.tobytes()


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\0" * 7, "7 bytes, a tensor file has at least 8"),
        (b"\0" * 8, "not JSON"),
        ((100).to_bytes(8, "little") + b"{}", "announces a header of 100 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "announces a header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "announces a header"),
        (b"\x80\x02}q\0.", "at least 8"),
        (b"PK\x03\x04" + bytes(100), "announces a header"),
        (raw_file(b"\xff\xfe"), "not JSON"),
        (raw_file(b"[" * 100_000), "not JSON"),
        (raw_file(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
        (raw_file([]), "not a JSON object"),
        (raw_file("a"), "not a JSON object"),
        (raw_file({"__metadata__": []}), "__metadata__ must map"),
        (raw_file({"__metadata__": {"a": 1}}), "__metadata__ must map"),
        (raw_file({"w": 3}), "tensor 'w' must have exactly"),
        (raw_file({"w": {**ONE, "more": 1}}, b"1234"), "tensor 'w' must have exactly"),
        (raw_file({"w": {"dtype": "F32", "shape": [1]}}), "tensor 'w' must have exactly"),
        (raw_file({"w": {**ONE, "dtype": "F8_E4M3"}}, b"1234"), "dtype 'F8_E4M3', supported are F64"),
        (raw_file({"w": {**ONE, "dtype": ["F32"]}}, b"1234"), r"dtype \['F32'\]"),
        (raw_file({"w": {**ONE, "dtype": None}}, b"1234"), "dtype None"),
        (raw_file({"w": {**ONE, "shape": 1}}, b"1234"), "malformed shape 1"),
        (raw_file({"w": {**ONE, "shape": [-1]}}, b"1234"), "malformed shape"),
        (raw_file({"w": {**ONE, "shape": [True]}}, b"1234"), "malformed shape"),
        (raw_file({"w": {**ONE, "shape": [1.0]}}, b"1234"), "malformed shape"),
        (raw_file({"w": {**ONE, "shape": [2]}}, b"1234"), r"shape \[2\] and dtype F32 needs 8 bytes.*give 4"),
        (raw_file({"w": {**ONE, "shape": [2**62, 2**62]}}, b"1234"), "needs"),
        (raw_file({"w": {**ONE, "data_offsets": [0, 8]}}, b"12345678"), "give 8"),
        (raw_file({"w": {**ONE, "data_offsets": [4, 0]}}, b"1234"), "give -4"),
        (raw_file({"w": {**ONE, "data_offsets": [-4, 0]}}, b"1234"), "malformed data_offsets"),
        (raw_file({"w": {**ONE, "data_offsets": [0]}}, b"1234"), "malformed data_offsets"),
        (raw_file({"w": {**ONE, "data_offsets": "04"}}, b"1234"), "malformed data_offsets"),
        (raw_file({"w": {**ONE, "data_offsets": [4, 8]}}, b"12345678"), "a hole or an overlap"),
        (raw_file({"v": ONE, "w": ONE}, b"1234"), "a hole or an overlap"),
        (raw_file({"w": ONE}, b"123"), "cut short or has a tail"),
        (raw_file({"w": ONE}, b"12345"), "cut short or has a tail"),
        (raw_file({}, b"1"), "cut short or has a tail"),
    ],
)  # fmt: skip
def test_files_that_are_no_tensor_file(folder: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_bytes(folder, data)
    assert "t.safetensors" in str(caught.value)


def test_a_file_that_cannot_be_opened(folder: Path) -> None:
    with pytest.raises(Error, match=r"cannot open '.*gone': No such file"):
        TensorFile(folder / "gone")
    with pytest.raises(Error, match=r"cannot open .*Is a directory"):
        TensorFile(folder)


WHOLE = written({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 2), np.int8)}, {"k": "v"})


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_cut_or_changed_file_never_gives_a_tensor_of_another_size(folder: Path, place: int, mask: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= mask
    try:
        file = open_bytes(folder, bytes(damaged) if mask else WHOLE[:place])
        sizes = {name: file.read(name).nbytes for name in file}
    except CheckpointError:
        return
    assert mask
    assert sum(sizes.values()) <= 24 + 24  # half a tensor widened from bfloat16 is the most


def test_what_cannot_be_written_is_said() -> None:
    for array in (np.zeros(1, np.complex64), np.array(["a"]), np.array([None]), np.zeros(1, np.uint32)):
        with pytest.raises(Error, match="tensor 'w' has dtype"):
            written({"w": array})


def test_closing_keeps_what_was_read_and_says_so_afterwards(folder: Path) -> None:
    file = open_bytes(folder, WHOLE)
    view, array = file.raw("a"), file.read("a")
    file.close()
    file.close()
    assert bytes(view) == array.tobytes()
    with pytest.raises(CheckpointError, match="is closed"):
        file.read("a")


def test_reading_copies_one_tensor_and_nothing_else(folder: Path) -> None:
    """A bfloat16 tensor is held once while it is widened, beside what comes back."""
    import tracemalloc

    count = 1 << 20
    header = {
        "w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]},
        "x": {"dtype": "F32", "shape": [count], "data_offsets": [2 * count, 6 * count]},
    }
    file = open_bytes(folder, raw_file(header, bytes(6 * count)))
    for name in ("w", "x"):
        tracemalloc.start()
        array = file.read(name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert array.nbytes == 4 * count
        assert peak < 4 * count + 100_000
