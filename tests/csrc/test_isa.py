"""The inner loops of each instruction set, one by one, against NumPy and against plain C++."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.sampling import philox
from tests import tolerances
from tests.csrc import cases
from tests.csrc.guarded import Guards
from tests.csrc.reference import (
    NOTHING,
    Array,
    DType,
    Packed,
    dequantize,
    integers,
    quantize,
    quantize_activation,
    random_matrix,
)
from tests.tolerances import relative

FORMATS = (cases.F32, cases.F16, *(f for f in cases.MIXED if f.block))
QUANTIZED = [f for f in FORMATS if f.block]
COUNTS = (1, 2, 4, 5, 11)  # vectors at once: one, a tile of four, and what is left over


def packed_matrix(f: cases.Format, rows: int, cols: int) -> Packed:
    return quantize(random_matrix(np.random.default_rng(rows * cols), rows, cols), f.dtype, f.block, f.scale_dtype)


@pytest.mark.parametrize("cols", [1, 8, 31, 130, 1030])
@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_products(kernels: Any, any_kernels: Any, f: cases.Format, cols: int) -> None:
    """Against float64 sums of the very integers; plain C++ as well."""
    isa, plain = kernels.current_isa(), any_kernels("plain")
    for rows, count in itertools.product((1, 3, 4, 9), COUNTS):
        guards = Guards()
        packed = guards.matrix(packed_matrix(f, rows, cols))
        x = guards.put(np.random.default_rng(count).standard_normal((count, cols)).astype(np.float32))
        found = kernels.rows(isa, packed, x)
        assert relative(found, exact_product(packed, x)) <= tolerances.CPU_KERNEL_RELATIVE
        assert relative(found, plain.rows("plain", packed, x)) <= tolerances.CPU_KERNEL_RELATIVE
        guards.check()


def exact_product(packed: Packed, x: Array) -> Array:
    if packed.scales is None:
        return x.astype(np.float64) @ dequantize(packed).T
    out = []
    for row in x:
        q, scales = quantize_activation(row, packed.block)
        sums = np.einsum("rbi,bi->rb", integers(packed).reshape(packed.rows, packed.blocks, packed.block), q)
        out.append((sums * packed.scales.astype(np.float64) * scales.astype(np.float64)).sum(axis=1))
    return np.array(out)


@pytest.mark.parametrize("f", QUANTIZED, ids=str)
def test_the_largest_integers_do_not_saturate(kernels: Any, f: cases.Format) -> None:
    """Bytes 0 and 255 against activations of +-127: sums are integers that float32 holds, so nothing may be lost."""
    cols = 2 * f.block
    for low, high in ((0, 255), (255, 0), (0, 0), (255, 255)):
        data = np.full((5, cols // (2 if f.dtype == DType.I4 else 1)), high, np.uint8)
        data[:, ::2] = low
        scales = np.ones((5, 2), np.float16 if f.scale_dtype == DType.F16 else np.float32)
        packed = Packed(data, scales, f.dtype, f.scale_dtype, 5, cols, f.block)
        x = np.where(np.arange(cols) % 3 == 0, -127, 127).astype(np.float32)[None]
        np.testing.assert_array_equal(kernels.rows(kernels.current_isa(), packed, x), exact_product(packed, x))


@pytest.mark.parametrize("dtype", [DType.I8, DType.I4])
def test_activations_are_rounded_as_numpy_does(kernels: Any, dtype: DType) -> None:
    rng = np.random.default_rng(3)
    for cols, gain in itertools.product((1, 31, 64, 333), (1.0, 1e-20, 1e30, float(NOTHING) / 2, 0.0)):
        x = (rng.standard_normal(cols) * gain).astype(np.float32)
        if cols > 4 and gain == 1:  # the largest, and halves of its step: ties go to the even integer
            x[:4] = 127, 0.5, 1.5, -2.5
            x[4:] = x[4:].clip(-1, 1)
        q, scale, total = kernels.quantize(kernels.current_isa(), x, 64, dtype)
        expected, scales = quantize_activation(x, 64)
        np.testing.assert_array_equal(scale, scales)
        np.testing.assert_array_equal(total, scales * expected.sum(axis=1).astype(np.float32))
        if dtype == DType.I4:  # even elements before odd ones
            expected = np.concatenate([expected[:, 0::2], expected[:, 1::2]], axis=1)
        np.testing.assert_array_equal(q, expected.reshape(-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_seen(kernels: Any, bad: float) -> None:
    """No integer stands for it: the block's scale is NaN."""
    for at in (0, 7, 63, 99):
        x = np.ones(100, np.float32)
        x[at] = bad
        _, scale, total = kernels.quantize(kernels.current_isa(), x, 64, DType.I8)
        np.testing.assert_array_equal(np.isnan(scale), [at < 64, at >= 64])
        np.testing.assert_array_equal(np.isnan(total), np.isnan(scale))
        out = np.zeros(104, np.int8)
        assert np.isnan(kernels.store(kernels.current_isa(), x, DType.I8, out))
        row = packed_matrix(cases.I8_32, 5, 100)
        assert np.isnan(kernels.rows(kernels.current_isa(), row, x[None])).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_a_cache_row(kernels: Any, dtype: Any) -> None:
    stored = {np.float32: DType.F32, np.float16: DType.F16, np.int8: DType.I8}[dtype]
    rng = np.random.default_rng(4)
    for dim, gain in itertools.product((2, 10, 16, 130), (1.0, 1e9, 0.0, 1e-35)):
        guards = Guards()
        x = guards.put((rng.standard_normal(dim) * gain).astype(np.float32))
        out = guards.put(np.ones(dim + 6, dtype), writable=True)
        scale = kernels.store(kernels.current_isa(), x, stored, out)
        guards.check()
        assert not out[dim:].any()
        if dtype == np.int8:
            [expected], [expected_scale] = quantize_activation(x, dim)
            assert scale == expected_scale
        else:
            expected = x if dtype == np.float32 else np.clip(x, -65504, 65504).astype(np.float16)
        np.testing.assert_array_equal(out[:dim], expected)


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_a_tables_row(kernels: Any, f: cases.Format) -> None:
    for cols in (1, 33, 300):
        table = packed_matrix(f, 7, cols)
        guards = Guards()
        inside = guards.matrix(table)
        for row in (0, 3, 6):
            found = kernels.read_row(kernels.current_isa(), inside, row)
            np.testing.assert_array_equal(found, dequantize(table, np.float32)[row])
        guards.check()


def test_exp(kernels: Any) -> None:
    """To float32's last digits, ends included: below exp(-87.3) and above exp(88.3) it stays what it is there."""
    x = np.concatenate([np.linspace(-87.3, 88.3, 20_001), [-0.0, 0.0, -1e-30, 87.33, -87.29]]).astype(np.float32)
    found, _ = kernels.exp(kernels.current_isa(), x, 0.0)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() <= tolerances.EXP_RELATIVE
    found, total = kernels.exp(kernels.current_isa(), x[9000:9333], 3.0)
    assert relative(total, np.exp(x[9000:9333].astype(np.float64) - 3).sum()) <= tolerances.CPU_KERNEL_RELATIVE
    ends = np.array([-1e4, -88, -np.inf, 90, 3e38, np.inf], np.float32)
    found, _ = kernels.exp(kernels.current_isa(), ends, 0.0)
    limits = np.exp(np.array([-87.3, -87.3, -87.3, 88.3, 88.3, 88.3], np.float32).astype(np.float64))
    assert np.abs(found / limits - 1).max() <= tolerances.EXP_RELATIVE
    for count in range(1, 35):  # NaN at the end of any remainder
        some = np.zeros(count, np.float32)
        some[-1] = np.nan
        found, total = kernels.exp(kernels.current_isa(), some, 0.0)
        assert np.isnan(total) and np.isnan(found[-1]) and (found[:-1] == 1).all()


def test_silu(kernels: Any) -> None:
    rng = np.random.default_rng(5)
    for count in (1, 7, 16, 333):
        gate, up = (rng.standard_normal((2, count)) * 20).astype(np.float32)
        found = kernels.silu_mul(kernels.current_isa(), gate, up)
        exact = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
        assert relative(found, exact) <= tolerances.CPU_KERNEL_RELATIVE
    far = np.array([-1e4, 1e4, -200, 200, np.nan], np.float32)
    found = kernels.silu_mul(kernels.current_isa(), far, np.ones(5, np.float32))
    assert (np.abs(found[[0, 2]]) <= tolerances.SILU_REST_ABS).all()
    np.testing.assert_array_equal(found[[1, 3, 4]], [1e4, 200, np.nan])


def test_rms_norm(kernels: Any) -> None:
    rng = np.random.default_rng(6)
    for count, gain in itertools.product((1, 7, 16, 333), (1.0, 1e-12, 1e15)):
        x, weight = (rng.standard_normal((2, count)) * np.array([[gain], [1]])).astype(np.float32)
        found = kernels.rms_norm(kernels.current_isa(), x, weight, 1e-6)
        wide = x.astype(np.float64)
        exact = wide / np.sqrt((wide**2).mean() + float(np.float32(1e-6))) * weight
        assert relative(found, exact) <= tolerances.CPU_KERNEL_RELATIVE


def test_no_instruction_leaves_its_file(native_build: Path) -> None:
    """An inline function compiled with a set's flags must not be the one that other files are linked with."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    objects = sorted((native_build / "CMakeFiles" / "edge_sdk_core.dir" / "kernels").glob("isa_*.o"))
    assert len(objects) == 4
    for path in objects:
        isa = path.name.removeprefix("isa_").removesuffix(".cc.o")
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        shared = [
            line for line in listing.splitlines() if line.split()[1] in "WVu" and f"edge_sdk::{isa}::" not in line
        ]
        assert not shared


# -- half precision


HALVES = np.arange(65536, dtype=np.uint32).astype(np.uint16)


def test_every_half_is_read_as_numpy_reads_it(kernels: Any) -> None:
    expected = HALVES.view(np.float16).astype(np.float32)
    found = kernels.half_to_float(HALVES)
    np.testing.assert_array_equal(found, expected)
    assert (np.signbit(found) == np.signbit(expected)).all()
    table = Packed(HALVES.view(np.float16).reshape(1, -1), None, DType.F16, DType.F32, 1, 65536, 0)
    np.testing.assert_array_equal(kernels.read_row(kernels.current_isa(), table, 0), expected)


def test_every_half_is_loaded_in_every_lane(kernels: Any) -> None:
    """One half a row among zeros, times ones."""
    rows = np.zeros((65536, 16), np.float16)
    rows[np.arange(65536), np.arange(65536) % 16] = HALVES.view(np.float16)
    table = Packed(rows, None, DType.F16, DType.F32, 65536, 16, 0)
    found = kernels.rows(kernels.current_isa(), table, np.ones((1, 16), np.float32))[0]
    np.testing.assert_array_equal(found, HALVES.view(np.float16).astype(np.float32))


def test_floats_become_the_nearest_half(any_kernels: Any) -> None:
    """As NumPy rounds; but what is too large becomes the largest half, and only a NaN a NaN."""
    halves = HALVES.view(np.float16).astype(np.float64)
    finite = np.unique(halves[np.isfinite(halves)])
    ties = (finite[1:] + finite[:-1]) / 2
    near = np.concatenate([finite, ties, np.nextafter(ties.astype(np.float32), np.float32(np.inf))])
    random = np.random.default_rng(8).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    edges = [0.0, -0.0, 65504, 65519.99, 65520, 1e30, np.inf, -np.inf, np.nan, 2.0**-25, 2.0**-24, 1e-45, -65520]
    with np.errstate(all="ignore"):
        values = np.concatenate([near, random.astype(np.float64), edges]).astype(np.float32)
    found, nan = any_kernels("plain").float_to_half(values), np.isnan(values)
    assert np.isnan(found[nan].view(np.float16)).all()
    expected = np.clip(values[~nan], -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(found[~nan], expected.view(np.uint16))


# -- Philox

# Of the authors' known-answer file (Random123, kat_vectors): counter, key, words.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(any_kernels: Any, counter: Any, key: Any, words: Any) -> None:
    whole = key[1] << 32 | key[0]
    assert tuple(any_kernels("plain").philox(whole, *counter)) == words
    assert philox(whole, counter) == words


def test_philox_is_the_packages(any_kernels: Any) -> None:
    rng = np.random.default_rng(9)
    for _ in range(1000):
        key, counter = int(rng.integers(0, 2**64, dtype=np.uint64)), [int(c) for c in rng.integers(0, 2**32, 4)]
        assert tuple(any_kernels("plain").philox(key, *counter)) == philox(key, (*counter,))
