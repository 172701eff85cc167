"""The C API through edge_sdk/native.py: what it makes, what it refuses, and what a library that is not right says."""

from __future__ import annotations

import dataclasses
import gc
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sdk import native as sdk
from edge_sdk.errors import ContextFullError, Error, RuntimeUnavailableError
from edge_sdk.native import LAYER_MATRICES, LAYER_NORMS, Matrix, Native, NativeHead
from edge_sdk.sampling import Sampling
from tests import tolerances
from tests.csrc import cases, reference
from tests.csrc.conversation import bound, conversation
from tests.csrc.reference import Array, Code, DType, Packed, Shape
from tests.tolerances import relative

ROOT = Path(__file__).resolve().parents[2]
SMALL = cases.HEADS[0]
BITS = {DType.I8: 8, DType.I4: 4}


@pytest.fixture
def native(native_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Native:
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(native_folder))
    assert sdk.unavailable() == ""
    return sdk.load()


def matrix(packed: Packed) -> Matrix:
    return Matrix(packed.data, packed.cols, packed.scales, packed.block, BITS.get(packed.dtype, 0))


def named_weights(weights: reference.Weights) -> dict[str, Matrix | Array]:
    found: dict[str, Matrix | Array] = {
        "input": matrix(weights.input),
        "input_bias": weights.input_bias,
        "input_table": matrix(weights.input_table),
        "output_table": matrix(weights.output_table),
        "final_norm": weights.final_norm,
    }
    for i, layer in enumerate(weights.layers):
        found |= {f"layers.{i}.{name}": getattr(layer, name) for name in LAYER_NORMS}
        found |= {f"layers.{i}.{name}": matrix(getattr(layer, name)) for name in LAYER_MATRICES}
    return found


def configs(s: Shape) -> tuple[Any, Any]:
    """What NativeHead reads of a ModelConfig and a TransformerConfig."""
    model = SimpleNamespace(
        group_size=s.group_size,
        backbone=SimpleNamespace(hidden_size=s.hidden),
        speech_ids=SimpleNamespace(codebook_size=s.codes, bos=s.bos),
    )
    head = SimpleNamespace(
        hidden_size=s.width, num_layers=s.layers, num_heads=s.heads, num_kv_heads=s.kv_heads, head_dim=s.head_dim,
        intermediate_size=s.intermediate, rms_norm_eps=s.eps, rope_theta=cases.ROPE_THETA,
    )  # fmt: skip
    return model, head


def make_head(native: Native, case: cases.Case = SMALL, threads: int = 2, **changes: Any) -> NativeHead:
    model, head = configs(case.shape)
    return native.head(model, head, named_weights(cases.make_weights(case)) | changes, threads=threads)


def settings(s: reference.Sampling) -> Sampling:
    return Sampling(s.do_sample, s.temperature, s.top_p, s.top_k, s.repetition_penalty)


# -- what it makes


@pytest.mark.parametrize(
    "case", [c for c in cases.HEADS if c.name.startswith(("small", "mixed", "full", "no choice"))], ids=str
)
def test_a_conversation_is_the_case_lists(native: Native, any_kernels: Any, case: cases.Case) -> None:
    head = make_head(native, case)
    cache = head.cache(case.capacity, {DType.F32: "float32", DType.F16: "float16", DType.I8: "int8"}[case.cache])
    plain = make_plain(any_kernels(native.isa), case)
    for call in conversation(case).calls:
        assert cache.length == call.length
        if not call.is_group:
            head.prefill(cache, call.head_input)
            plain.prefill(call.head_input, call.length)
            continue
        s = call.sampling
        logits = np.empty((case.shape.group_size, case.shape.codes), np.float32)

        def group(s: reference.Sampling = s, call: Any = call, logits: Array = logits) -> Array:
            return head.group(
                cache, call.head_input, call.last_id, sampling=settings(s), seen=call.seen.view(bool), seed=s.seed,
                turn=s.turn, step=s.step, logits=logits,
            )  # fmt: skip

        if call.code != Code.OK:
            with pytest.raises(ContextFullError if call.code == Code.CACHE_FULL else Error):
                group()
            continue
        assert group().tolist() == list(call.ids)
        assert relative(logits, call.logits) <= bound(case, call)
        ids, expected = plain.group(call.head_input, call.last_id, call.length, call.seen, s)
        assert ids.tolist() == list(call.ids)
        # The same kernels; but the C API makes its own rope tables, a last digit apart from NumPy's.
        assert relative(logits, expected) <= bound(case, call)


def make_plain(kernels: Any, case: cases.Case) -> Any:
    return kernels.Head(case.shape, cases.make_weights(case), cases.make_cache(case), 1)


@pytest.mark.parametrize("case", cases.GROUPS, ids=str)
def test_grouping(native: Native, case: cases.GroupCase) -> None:
    table, ids, text, rows = cases.group_tokens_arrays(case)
    if case.bad_id is None:
        found = native.group_tokens(matrix(table), ids, text)
        assert relative(found, reference.group_tokens(table, ids, text)) <= tolerances.CPU_KERNEL_RELATIVE
    else:
        with pytest.raises(Error, match=f"speech id {case.bad_id} is outside the table of {case.codes}"):
            native.group_tokens(matrix(table), ids, text)
    found, expected = native.group_rows(rows, case.group_size), reference.group_rows(rows, case.group_size)
    assert found.shape == expected.shape
    assert not len(rows) or relative(found, expected) <= tolerances.CPU_KERNEL_RELATIVE


def test_memory_is_what_the_cache_holds(native: Native) -> None:
    s, head = SMALL.shape, make_head(native)
    values = 2 * s.layers * s.kv_heads * 100
    for dtype, size in (("float32", 4), ("float16", 2), ("int8", 1)):
        assert head.cache(100, dtype).nbytes == values * (s.cache_head_dim * size + 4 * (dtype == "int8"))


def test_a_cache_that_was_trimmed_goes_on_as_if_nothing_was(native: Native) -> None:
    head = make_head(native)
    rows = cases.prefill_input(SMALL, 0)
    cache, other = head.cache(40), head.cache(40)
    head.prefill(cache, rows)
    head.prefill(cache, rows[::-1])
    cache.trim(10)
    head.prefill(other, rows)
    row = cases.group_input(SMALL, 0)
    np.testing.assert_array_equal(head.group(cache, row, 80), head.group(other, row, 80))
    assert cache.length == other.length == 15
    for wrong in (-1, 16, 2**31, 2**80):
        with pytest.raises(Error, match=r"cache_trim|cannot trim"):
            cache.trim(wrong)
    assert cache.length == 15


def test_what_is_freed_in_any_order(native: Native) -> None:
    """A cache keeps its head alive; many heads with threads come and go."""
    for _ in range(5):
        head = make_head(native, threads=4)
        cache = head.cache(20)
        head.prefill(cache, cases.prefill_input(SMALL, 0))
        del head
        gc.collect()
        assert cache.length == 10
        del cache
    gc.collect()


# -- what it refuses


HUGE = (2**31 - 1, 2**31, -(2**31) - 1, 2**80)


def test_wrong_threads(native: Native) -> None:
    for threads in (0, -1, 257, *HUGE):
        with pytest.raises(Error, match=r"threads|head_create"):
            make_head(native, threads=threads)


NO_THREADS = """
import resource
from edge_sdk.errors import Error
from tests.csrc.test_native import make_head, sdk
native = sdk.load()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))  # no room for 256 stacks
try:
    make_head(native, threads=256)
except Error as e:
    print("refused:", e)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
make_head(native, threads=2).cache(10)
print("goes on")
"""


def test_a_system_without_threads(native: Native) -> None:
    done = subprocess.run([sys.executable, "-c", NO_THREADS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ") and done.stdout.endswith("goes on\n")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Shape) if f.name not in ("eps", "bos", "layers")])
def test_wrong_shapes(native: Native, name: str) -> None:
    for wrong in (0, -1, getattr(SMALL.shape, name) + 1, *HUGE):
        model, head = configs(dataclasses.replace(SMALL.shape, **{name: wrong}))
        with pytest.raises(Error):
            native.head(model, head, named_weights(cases.make_weights(SMALL)))


def test_wrong_bos_and_eps(native: Native) -> None:
    for change in ({"bos": -1}, {"bos": 83}, {"bos": 2**40}, {"eps": -1.0}, {"eps": np.nan}, {"eps": np.inf}):
        model, head = configs(dataclasses.replace(SMALL.shape, **change))
        with pytest.raises(Error, match=r"bos|eps|head_shape"):
            native.head(model, head, named_weights(cases.make_weights(SMALL)))


def test_wrong_weights(native: Native) -> None:
    weights = named_weights(cases.make_weights(SMALL))
    del weights["layers.1.up"]
    with pytest.raises(Error, match=r"no weight 'layers\.1\.up'"):
        native.head(*configs(SMALL.shape), weights)
    good = np.zeros((64, 64), np.float32)
    for wrong in (
        good.astype(np.float64),
        good[:, ::2],
        good[0],
        good[:1],
        good[:, :63].copy(),
        np.float32(3).reshape(()),
    ):
        with pytest.raises(Error):
            make_head(native, **{"layers.0.q": wrong})
    for wrong in (
        np.ones(63, np.float32),
        np.ones(64),
        np.ones((1, 64), np.float32),
        matrix(cases.make_weights(SMALL).input),
    ):
        with pytest.raises(Error, match=r"final_norm|float32"):
            make_head(native, final_norm=wrong)


def test_wrong_quantized_weights(native: Native) -> None:
    case = cases.Case("int8", cases.SMALL, formats=(cases.I8_32,))
    good = matrix(cases.make_weights(case).layers[0].q)
    assert good.scales is not None
    for change in (
        {"cols": 63}, {"cols": 65}, {"cols": 0}, {"cols": 2**40}, {"bits": 4}, {"bits": 3}, {"bits": 0},
        {"block": 0}, {"block": 16}, {"block": 64}, {"block": -32}, {"block": 2**40},
        {"scales": None}, {"scales": good.scales[:1]}, {"scales": good.scales.astype(np.float64)},
        {"data": good.data.view(np.int8)}, {"data": good.data[:, :32].copy()},
    ):  # fmt: skip
        with pytest.raises(Error):
            make_head(native, case, **{"layers.0.q": dataclasses.replace(good, **change)})
    assert make_head(native, case).cache(5).length == 0


def test_wrong_caches(native: Native) -> None:
    head = make_head(native)
    for capacity in (0, -1, 2**24 + 1, *HUGE):
        with pytest.raises(Error, match=r"capacity|cache_create"):
            head.cache(capacity)
    for dtype in ("int4", "float64", ""):
        with pytest.raises(Error, match=r"float32, float16 or int8|FLOAT32, FLOAT16 or INT8"):
            head.cache(10, dtype)
    library, out = native.library, native.ffi.new("edge_sdk_cache **")
    for theta in (0.0, -1.0, np.nan, np.inf):
        assert library.edge_sdk_cache_create(head._handle, 10, 0, theta, out) == Code.INVALID_ARGUMENT


def test_a_cache_of_another_head(native: Native) -> None:
    head, other = make_head(native), make_head(native)
    cache = other.cache(40)
    with pytest.raises(Error, match="another head"):
        head.prefill(cache, cases.prefill_input(SMALL, 0))
    with pytest.raises(Error, match="another head"):
        head.group(cache, cases.group_input(SMALL, 0), 80)
    assert cache.length == 0


def test_a_full_cache(native: Native) -> None:
    head = make_head(native)
    cache, rows = head.cache(14), cases.prefill_input(SMALL, 0)
    with pytest.raises(ContextFullError, match="14 positions cannot take 15 more after 0"):
        head.prefill(cache, np.concatenate([rows, rows[:1]]))
    head.prefill(cache, rows)
    with pytest.raises(ContextFullError, match="14 positions cannot take 5 more after 10"):
        head.group(cache, rows[0], 80)
    cache.trim(5)
    assert len(head.group(cache, rows[0], 80)) == 5
    head.prefill(cache, rows[:0])
    assert cache.length == 10


def test_wrong_inputs(native: Native) -> None:
    head = make_head(native)
    cache, row = head.cache(40), cases.group_input(SMALL, 0)
    bad = row.copy()
    bad[3] = np.nan
    for wrong in (
        row[:-1],
        row[None],
        np.zeros((2, 49), np.float32),
        bad[None] if bad.ndim > 1 else np.stack([row, bad]),
    ):
        if wrong.shape != (1, 48):
            with pytest.raises(Error, match=r"head_input|hidden states"):
                head.prefill(cache, wrong)
    for wrong in (row[:-1], np.zeros(49, np.float32), bad, np.full(48, np.inf, np.float32)):
        with pytest.raises(Error, match=r"head_input|hidden state"):
            head.group(cache, wrong, 80)
    for last in (-1, 83, 2**62, 2**63, -(2**80)):
        with pytest.raises(Error, match=r"last id|head_group"):
            head.group(cache, row, last)
    for seen in (np.zeros(82, np.uint8), np.zeros(83, np.int64), np.zeros((1, 83), bool)):
        with pytest.raises(Error, match="seen"):
            head.group(cache, row, 80, seen=seen)
    for logits in (np.zeros((5, 82), np.float32), np.zeros((5, 83)), np.zeros((83, 5), np.float32).T):
        with pytest.raises(Error, match=r"logits|float32"):
            head.group(cache, row, 80, logits=logits)
    assert cache.length == 0
    head.group(cache, row, 80)
    assert cache.length == 5


def test_wrong_sampling(native: Native) -> None:
    head = make_head(native)
    cache, row = head.cache(40), cases.group_input(SMALL, 0)
    for change in (
        {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": np.nan}, {"repetition_penalty": 0.0},
        {"repetition_penalty": np.nan}, {"top_p": -0.1}, {"top_p": np.nan}, {"top_k": -1}, {"top_k": 2**31},
        {"bad_words": ((3,),)},
    ):  # fmt: skip
        with pytest.raises(Error, match=r"temperature|sampling|bad_words"):
            head.group(cache, row, 80, sampling=Sampling(do_sample=True, **change))
    for counter in ({"seed": -1}, {"seed": 2**64}, {"turn": 2**32}, {"step": -1}):
        with pytest.raises(Error, match="sampling"):
            head.group(cache, row, 80, sampling=Sampling(do_sample=True), **counter)
    assert cache.length == 0


def test_wrong_grouping(native: Native) -> None:
    table = Matrix(np.ones((9, 4), np.float32), 4)
    ids = np.zeros((2, 3), np.int64)
    for wrong in (ids[0], ids[None]):
        with pytest.raises(Error, match="ids are"):
            native.group_tokens(table, wrong)
    with pytest.raises(Error, match="text is"):
        native.group_tokens(table, ids, np.zeros((2, 5), np.float32))
    with pytest.raises(Error, match="float32"):
        native.group_tokens(table, ids, np.zeros((2, 4)))
    with pytest.raises(Error, match="group size"):
        native.group_tokens(table, ids[:, :0])
    int4 = matrix(reference.quantize(np.ones((9, 32), np.float32), DType.I4, 32))
    with pytest.raises(Error, match="float32, float16 or int8"):
        native.group_tokens(int4, ids)
    for size in (0, -1, 2**31):
        with pytest.raises(Error, match=r"group rows|group_rows"):
            native.group_rows(np.zeros((4, 2), np.float32), size)
    with pytest.raises(Error, match="rows are"):
        native.group_rows(np.zeros(4, np.float32), 2)
    assert native.group_rows(np.ones((4, 2), np.float32), 2**31 - 1).shape == (1, 2)
    assert native.group_tokens(table, ids[:0]).shape == (0, 4)


def test_null_pointers(native: Native) -> None:
    """Every function, past the Python face: a code and words, no crash."""
    ffi, library = native.ffi, native.library
    head, null = make_head(native), ffi.NULL
    cache = head.cache(20)
    shape, weights = ffi.new("edge_sdk_head_shape *"), ffi.new("edge_sdk_head_weights *")
    out, ids, row = ffi.new("edge_sdk_head **"), ffi.new("int64_t[5]"), ffi.new("float[48]")
    seen, sampling = ffi.new("uint8_t[83]"), ffi.new("edge_sdk_sampling *")
    table = ffi.new("edge_sdk_matrix *")
    h, c = head._handle, cache.handle
    for refused in (
        library.edge_sdk_head_create(null, weights, 1, out),
        library.edge_sdk_head_create(shape, null, 1, out),
        library.edge_sdk_head_create(shape, weights, 1, null),
        library.edge_sdk_head_create(shape, weights, 1, out),
        library.edge_sdk_cache_create(null, 5, 0, 1e6, ffi.new("edge_sdk_cache **")),
        library.edge_sdk_cache_create(h, 5, 0, 1e6, null),
        library.edge_sdk_cache_trim(null, 0),
        library.edge_sdk_head_prefill(null, c, row, 1),
        library.edge_sdk_head_prefill(h, null, row, 1),
        library.edge_sdk_head_prefill(h, c, null, 1),
        library.edge_sdk_head_prefill(h, c, row, -1),
        library.edge_sdk_head_group(null, c, row, 0, seen, sampling, ids, null),
        library.edge_sdk_head_group(h, null, row, 0, seen, sampling, ids, null),
        library.edge_sdk_head_group(h, c, null, 0, seen, sampling, ids, null),
        library.edge_sdk_head_group(h, c, row, 0, null, sampling, ids, null),
        library.edge_sdk_head_group(h, c, row, 0, seen, null, ids, null),
        library.edge_sdk_head_group(h, c, row, 0, seen, sampling, null, null),
        library.edge_sdk_group_tokens(null, ids, 1, 5, null, row),
        library.edge_sdk_group_tokens(table, ids, 1, 5, null, row),
        library.edge_sdk_group_rows(null, 1, 1, 1, row),
        library.edge_sdk_group_rows(row, 1, 1, 1, null),
        library.edge_sdk_group_rows(row, 1, 0, 1, row),
        library.edge_sdk_group_rows(row, -1, 1, 1, row),
    ):
        assert refused == Code.INVALID_ARGUMENT
    assert ffi.string(library.edge_sdk_last_error())
    assert out[0] == null and library.edge_sdk_cache_length(null) == 0 and library.edge_sdk_cache_bytes(null) == 0
    library.edge_sdk_head_free(null)
    library.edge_sdk_cache_free(null)
    assert cache.length == 0


def test_every_failure_has_its_own_words_on_its_own_thread(native: Native) -> None:
    native.library.edge_sdk_cache_trim(native.ffi.NULL, 0)
    before = native.ffi.string(native.library.edge_sdk_last_error())
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(native.ffi.string(native.library.edge_sdk_last_error())))
    thread.start()
    thread.join()
    assert found == [b""] and before == native.ffi.string(native.library.edge_sdk_last_error())


# -- a library that is not right


def unavailable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(folder))
    with pytest.raises(RuntimeUnavailableError) as refused:
        sdk.load()
    assert sdk.unavailable() == str(refused.value)
    return str(refused.value)


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was not built" in unavailable(tmp_path, monkeypatch)


def test_a_truncated_library_or_header(native_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rest in ((sdk.LIBRARY, 3000), (sdk.LIBRARY, 0), (sdk.HEADER, 4000), (sdk.HEADER, 0)):
        folder = tmp_path / f"{name}-{rest}"
        shutil.copytree(native_folder, folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:rest])
        reason = unavailable(folder, monkeypatch)
        assert "cut short" in reason if (name, rest) == (sdk.LIBRARY, 3000) else "cannot be opened" in reason
    folder = tmp_path / "no header"
    folder.mkdir()
    shutil.copy(native_folder / sdk.LIBRARY, folder)
    assert "cannot be opened" in unavailable(folder, monkeypatch)


def test_another_abi_version(native_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(native_folder / sdk.HEADER, tmp_path)
    source = tmp_path / "old.c"
    source.write_text("int edge_sdk_abi_version(void) { return 99; }\n")
    compile_c("cc", "-shared", "-fPIC", "-o", tmp_path / sdk.LIBRARY, source)
    assert "has ABI version 99, this edge_sdk needs 1" in unavailable(tmp_path, monkeypatch)


# -- the header and the library's face


def compile_c(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """#include "edge_sdk.h"
int main(void) { return edge_sdk_abi_version() != EDGE_SDK_ABI_VERSION; }
"""


def strict(folder: Path) -> tuple[str, ...]:
    return ("-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{folder}")


def linked(folder: Path) -> tuple[str, ...]:
    return (f"-L{folder}", "-ledge_sdk", f"-Wl,-rpath,{folder}")


@pytest.mark.parametrize(("compiler", "standard"), [("cc", "c99"), ("c++", "c++17")])
def test_the_header_is_c_and_cpp(native_folder: Path, tmp_path: Path, compiler: str, standard: str) -> None:
    source = tmp_path / ("x.c" if compiler == "cc" else "x.cc")
    source.write_text(
        '#include "edge_sdk.h"\nint main(void) { return edge_sdk_abi_version() != EDGE_SDK_ABI_VERSION; }\n'
    )
    program = tmp_path / "x"
    flags = (f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{native_folder}")
    compile_c(
        compiler, *flags, source, f"-L{native_folder}", "-ledge_sdk", f"-Wl,-rpath,{native_folder}", "-o", program
    )
    compile_c(program)


def functions(header: str) -> set[str]:
    return set(re.findall(r"\b(edge_sdk_\w+)\(", sdk.declarations(header)))


def test_the_declarations_are_the_headers(native: Native, native_folder: Path) -> None:
    text = (native_folder / sdk.HEADER).read_text()
    assert len(functions(text)) > 10
    for name in functions(text):
        assert getattr(native.library, name)
    assert f"#define EDGE_SDK_ABI_VERSION {sdk.ABI_VERSION}" in text


def test_nothing_else_is_exported(native_folder: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    lines = compile_c("nm", "-D", "--defined-only", native_folder / sdk.LIBRARY).splitlines()
    assert {line.split()[-1] for line in lines} == functions((native_folder / sdk.HEADER).read_text())


def test_the_sample_in_c(native_folder: Path, tmp_path: Path) -> None:
    source, program = ROOT / "samples" / "embed.c", tmp_path / "embed"
    assert len(source.read_text().splitlines()) < 100
    compile_c("cc", "-std=c99", *strict(native_folder), source, *linked(native_folder), "-o", program)
    out = compile_c(program).splitlines()
    assert len(out) == 5 and all(line.startswith("group") for line in out[1:])
    picks = [line.split(":")[1] for line in out[1:]]
    assert picks == [line.split(":")[1] for line in compile_c(program).splitlines()[1:]], "seeded"
