"""The registry of runtimes, and ONNX Runtime behind the small interface: borders, binding, sharing, failing."""

from __future__ import annotations

import logging
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import runtimes
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.config import TransformerConfig
from edge_sdk.context import Context
from edge_sdk.errors import BundleError, Error, RuntimeUnavailableError
from edge_sdk.export.bundle_writer import BundleWriter
from edge_sdk.export.graphs.blocks import KVCache as GraphCache
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.kv_cache import KVCache, rope_tables
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, GraphEntry, Manifest
from edge_sdk.native import ort_ops_unavailable
from edge_sdk.prompt import Prompt
from edge_sdk.runtimes import ort
from edge_sdk.sampling import Sampling
from edge_sdk.speech_head import FusedSpeechHead, PlainSpeechHead
from edge_sdk.tensors import TensorSpec
from tests import tolerances
from tests.bundles import RANDOM

STACK_WIDTH, KV_HEADS, HEAD = 32, 2, 16
WEIGHT = np.arange(64 * 48, dtype=np.float32).reshape(64, 48) / 100
TABLE = np.linspace(0, 1, 5 * 4, dtype=np.float32).reshape(5, 4)


def same(found: Any, expected: Any) -> None:
    assert tolerances.relative(found, expected) < tolerances.MATMUL_RELATIVE


def project() -> GraphBuilder:
    """y [S, 48] = x [S, 64] @ w, and its row sums."""
    g = GraphBuilder("project")
    y = g.op("MatMul", g.input("x", "float32", ("S", 64)), g.weight(Weight.of("w", WEIGHT)))
    g.output(y, "y", "float32", ("S", 48))
    g.output(g.op("ReduceSum", y, g.ints(1), keepdims=0), "sums", "float32", ("S",))
    return g


def lookup() -> GraphBuilder:
    """Fails inside the session when an id is outside the table."""
    g = GraphBuilder("lookup")
    row = g.op("Gather", g.weight(Weight.of("table", TABLE)), g.input("id", "int64", ("N",)))
    g.output(row, "row", "float32", ("N", 4))
    return g


def attend() -> GraphBuilder:
    """One attention layer over a cache that is updated in place."""
    g = GraphBuilder("attend")
    config = TransformerConfig(STACK_WIDTH, 1, 2, KV_HEADS, HEAD, 8, 1e-6, 1e4)
    x = g.input("x", "float32", ("S", STACK_WIDTH))
    cache = GraphCache(g, config)
    g.output(cache.attend(0, x, x, x), "y", "float32", ("S", STACK_WIDTH))
    cache.declare_outputs()
    return g


def entry(g: GraphBuilder, writer: BundleWriter, **changes: Any) -> GraphEntry:
    data = g.save(writer.path(f"{g.name}.onnx"), writer.path(f"{g.name}.bin")) > 0
    writer.finish(f"{g.name}.onnx", *[f"{g.name}.bin"] * data)
    fields: dict[str, Any] = {
        "file": f"{g.name}.onnx",
        "data": f"{g.name}.bin" * data,
        "precision": "fp32",
        "ops": g.ops_used,
        "inputs": tuple(s.to_json() for s in g.inputs),
        "outputs": tuple(s.to_json() for s in g.outputs),
    }
    return GraphEntry(**{**fields, **changes})


def write(output: Path, **changes: Any) -> Path:
    """`changes` go into the entry of `project`."""
    with BundleWriter(output, "test", resume=False, overwrite=False) as writer:
        graphs = {
            "project": entry(project(), writer, **changes),
            "lookup": entry(lookup(), writer),
            "attend": entry(attend(), writer),
        }
        writer.write_manifest(
            Manifest(FORMAT, FORMAT_VERSION, "test", model=None, vocoder=None, graphs=graphs, files=writer.files)
        )
        return writer.publish(one_file=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle.open(write(tmp_path_factory.mktemp("ort") / "test.bundle")) as opened:
        yield opened


@pytest.fixture
def project_call(bundle: Bundle) -> Any:
    return bundle.runtime(threads=1).engine("project").call()


# -- the registry


def test_every_runtime_is_listed_with_its_state() -> None:
    assert set(runtimes.available()) == set(runtimes.MODULES) == set(runtimes.BRINGS)
    assert runtimes.available()["onnxruntime"] == ""
    assert runtimes.resolve("onnxruntime") == "onnxruntime"


def test_auto_says_in_the_log_what_it_chose(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    broken = types.ModuleType("broken_runtime")
    broken.unavailable = lambda: "no such device"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken_runtime", broken)
    monkeypatch.setattr(runtimes, "MODULES", {"fast": "broken_runtime", "onnxruntime": runtimes.MODULES["onnxruntime"]})
    with caplog.at_level(logging.INFO, "edge_sdk.runtimes"):
        assert runtimes.resolve("auto") == "onnxruntime"
    assert "chose onnxruntime; fast: no such device" in caplog.text
    with pytest.raises(RuntimeUnavailableError, match="runtime 'fast' cannot run here: no such device"):
        runtimes.resolve("fast")


def test_an_unknown_name(bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"unknown runtime 'cuda'; choose auto, .*, onnxruntime"):
        bundle.runtime("cuda")


class Missing:
    """An import hook that behaves as if a package was not installed, or broken."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "onnxruntime":
            raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("no module named onnxruntime"), r"cannot be imported \(ImportError: no module.*edge_sdk\[cpu\]"),
        (ImportError("libonnxruntime.so: cannot open shared object file"), "cannot open shared object file"),
        (AttributeError("_ARRAY_API not found"), r"AttributeError: _ARRAY_API not found"),
        (OSError("bad ELF"), "OSError: bad ELF"),
    ],
)  # fmt: skip
def test_without_onnxruntime(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(error), *sys.meta_path])
    for name in ("onnxruntime", "auto"):
        with pytest.raises(RuntimeUnavailableError, match=message):
            runtimes.resolve(name)
    with pytest.raises(RuntimeUnavailableError, match=message):
        ort.open_runtime(bundle, device_id=0, threads=None)


@pytest.mark.parametrize("version", ["1.31.9", "0.99", "1", "", "unknown"])
def test_an_onnxruntime_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(RuntimeUnavailableError, match=f"onnxruntime {version} is older than 1.32; upgrade it"):
        runtimes.resolve("onnxruntime")


@pytest.mark.parametrize("version", ["1.32.0", "1.32.0rc1", "1.32rc1", "1.40.0.dev20270101", "2.0"])
def test_an_onnxruntime_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert runtimes.resolve("onnxruntime") == "onnxruntime"


def test_an_onnxruntime_without_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a package after a removal: a folder that imports, empty."""
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(RuntimeUnavailableError, match="cannot be imported"):
        runtimes.resolve("onnxruntime")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 10**6])
def test_thread_counts_that_make_no_sense(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(Error, match="threads must be None or an integer from 1"):
        bundle.runtime(threads=threads)


def test_threads_are_what_was_asked_for(bundle: Bundle) -> None:
    assert bundle.runtime(threads=1).threads == 1  # type: ignore[attr-defined]
    assert bundle.runtime().threads >= 1  # type: ignore[attr-defined]
    options = bundle.runtime(threads=1).engine("project").session.get_session_options()  # type: ignore[attr-defined]
    assert options.intra_op_num_threads == 1


# -- the border


def spec(name: str, dtype: str, *shape: Any) -> dict[str, Any]:
    return TensorSpec(name, dtype, shape).to_json()


GOOD_OUT = (spec("y", "float32", "S", 48), spec("sums", "float32", "S"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (spec("z", "float32", "S", 64),)}, r"has inputs \['x'\], its manifest says \['z'\]"),
        ({"inputs": ()}, r"has inputs \['x'\], its manifest says \[\]"),
        ({"outputs": GOOD_OUT[:1]}, r"has outputs \['sums', 'y'\], its manifest says \['y'\]"),
        ({"inputs": (spec("x", "float16", "S", 64),)}, r"'x' of graph 'project' is tensor\(float\).*says float16"),
        ({"inputs": (spec("x", "float32", "S", 65),)}, r"its manifest says float32\['S', 65\]"),
        ({"inputs": (spec("x", "float32", 64),)}, r"its manifest says float32\[64\]"),
        ({"outputs": (spec("y", "int64", "S", 48), GOOD_OUT[1])}, r"'y' of graph 'project' is tensor\(float\)"),
        ({"outputs": (GOOD_OUT[0], spec("sums", "float32"))}, r"'sums' of graph 'project'"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path, changes: Any, message: str) -> None:
    with Bundle.open(write(tmp_path / "test.bundle", **changes)) as bundle:
        with pytest.raises(BundleError, match=message):
            bundle.runtime(threads=1).engine("project")
        assert bundle.runtime(threads=1).engine("lookup").call(), "others can still be used"


def test_named_dimensions_fit_any_size(tmp_path: Path) -> None:
    changes = {"inputs": (spec("x", "float32", "rows", "columns"),)}
    with Bundle.open(write(tmp_path / "test.bundle", **changes)) as bundle:
        call = bundle.runtime(threads=1).engine("project").call()
        call.set("x", np.ones((2, 64), np.float32))
        call.fetch("y")
        assert call.run()["y"].shape == (2, 48)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 64)), r"graph 'project': tensor 'x' wants float32\['S', 64\], got float64\[2, 64\]"),
        (np.zeros((2, 63), np.float32), r"got float32\[2, 63\]"),
        (np.zeros(64, np.float32), r"got float32\[64\]"),
        (np.zeros((2, 64), ">f4"), r"got >f4\[2, 64\]"),
        (np.zeros((64, 2), np.float32).T, r"graph 'project': the array for 'x' is not C-contiguous"),
        (np.zeros((4, 64), np.float32)[::2], "is not C-contiguous"),
    ],
)
def test_an_input_that_does_not_fit(project_call: Any, array: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        project_call.set("x", array)
    project_call.set("x", np.zeros((2, 64), np.float32))
    project_call.fetch("y")
    assert not project_call.run()["y"].any(), "the call can go on"


def test_an_output_that_does_not_fit(project_call: Any) -> None:
    with pytest.raises(Error, match=r"tensor 'y' wants float32\['S', 48\], got float32\[2, 47\]"):
        project_call.out("y", np.zeros((2, 47), np.float32))
    with pytest.raises(Error, match=r"the array for 'y \(output\)' is not C-contiguous"):
        project_call.out("y", np.zeros((48, 2), np.float32).T)


def test_a_name_that_the_graph_does_not_have(project_call: Any) -> None:
    with pytest.raises(Error, match="graph 'project' has no 'z' there; it has x"):
        project_call.set("z", np.zeros((2, 64), np.float32))
    for use in (lambda: project_call.out("x", np.zeros((2, 64), np.float32)), lambda: project_call.fetch("y", "x")):
        with pytest.raises(Error, match="graph 'project' has no 'x' there; it has y, sums"):
            use()


def test_a_graph_whose_weights_are_cut(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the bundle's own checks: the session refuses, in our words."""
    read = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: read(self, name)[: 100 if name.endswith(".bin") else None])
    with pytest.raises(BundleError, match="onnxruntime cannot open graph 'project'"):
        ort.OrtRuntime(bundle, 1).engine("project")


# -- running


def test_bound_arrays_are_read_and_written_in_place(project_call: Any) -> None:
    x, y = np.zeros((3, 64), np.float32), np.full((3, 48), 7, np.float32)
    project_call.set("x", x)
    project_call.out("y", y)
    project_call.fetch("sums")
    rng = np.random.default_rng(0)
    for _ in range(3):
        x[:] = rng.standard_normal(x.shape)
        sums = project_call.run()["sums"]
        same(y, x @ WEIGHT)
        same(sums, y.sum(axis=1))


def test_fetched_outputs_are_new_arrays_of_any_size(project_call: Any) -> None:
    project_call.fetch("y", "sums")
    kept = []
    for rows in (1, 5, 2, 0):
        project_call.set("x", np.full((rows, 64), rows, np.float32))
        kept.append(project_call.run())
    for rows, out in zip((1, 5, 2, 0), kept, strict=True):
        assert set(out) == {"y", "sums"}
        assert out["y"].shape == (rows, 48)
        if rows:
            same(out["y"], np.full((rows, 64), rows, np.float32) @ WEIGHT)


def test_a_binding_keeps_its_arrays_alive(project_call: Any) -> None:
    import gc

    project_call.set("x", np.full((2, 64), 3, np.float32))
    project_call.fetch("y")
    gc.collect()
    [np.full((2, 64), 9, np.float32) for _ in range(50)]
    same(project_call.run()["y"], np.full((2, 64), 3, np.float32) @ WEIGHT)


def test_a_failing_session_is_an_error_of_ours_and_can_go_on(bundle: Bundle) -> None:
    call = bundle.runtime(threads=1).engine("lookup").call()
    call.fetch("row")
    for bad in (5, -6, 2**62):
        call.set("id", np.array([0, bad]))
        with pytest.raises(Error, match="graph 'lookup' failed in onnxruntime"):
            call.run()
    call.set("id", np.array([0, 4]))
    assert np.array_equal(call.run()["row"], TABLE[[0, 4]])


def test_an_input_that_was_not_set(bundle: Bundle) -> None:
    call = bundle.runtime(threads=1).engine("lookup").call()
    call.fetch("row")
    with pytest.raises(Error, match="graph 'lookup' failed in onnxruntime"):
        call.run()


def test_an_engine_is_opened_once_and_shared(bundle: Bundle) -> None:
    """Two calls are two sets of bindings on one session: weights are there once."""
    runtime = ort.OrtRuntime(bundle, 1)
    engines: list[Any] = []
    threads = [threading.Thread(target=lambda: engines.append(runtime.engine("project"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(e) for e in engines}) == 1
    first, second = engines[0].call(), engines[0].call()
    assert first._engine.session is second._engine.session
    for call, value in ((first, 1.0), (second, 2.0)):
        call.set("x", np.full((1, 64), value, np.float32))
        call.fetch("y")
    same(2 * first.run()["y"], second.run()["y"])


def test_calls_of_several_threads_run_side_by_side(bundle: Bundle) -> None:
    engine = bundle.runtime(threads=1).engine("project")
    failures: list[Any] = []

    def work(seed: int) -> None:
        rng, call = np.random.default_rng(seed), engine.call()
        call.fetch("y")
        for _ in range(30):
            x = rng.standard_normal((4, 64)).astype(np.float32)
            call.set("x", x)
            if tolerances.relative(call.run()["y"], x @ WEIGHT) > tolerances.MATMUL_RELATIVE:
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_weights_stay_mapped_while_a_session_uses_them(tmp_path: Path) -> None:
    path = write(tmp_path / "test.bundle")
    bundle = Bundle.open(path)
    call = bundle.runtime(threads=1).engine("project").call()
    bundle.close()
    del bundle
    assert str(path / "project.bin") in Path("/proc/self/maps").read_text()
    call.set("x", np.ones((1, 64), np.float32))
    call.fetch("y")
    same(call.run()["y"], np.ones((1, 64), np.float32) @ WEIGHT)


# -- caches


def test_a_cache_is_updated_in_place_and_never_moves(bundle: Bundle) -> None:
    """Each run writes its rows and leaves every other byte of the cache alone."""
    runtime = bundle.runtime(threads=1)
    cache = KVCache(runtime, runtime.engine("attend"), 12)
    assert set(cache._arrays) == {"key_cache.0", "value_cache.0"}
    call = runtime.engine("attend").call()
    call.set("rope_cos", rope_tables(HEAD, 1e4, 12)[0])
    call.set("rope_sin", rope_tables(HEAD, 1e4, 12)[1])
    cache.bind(call)
    call.fetch("y")
    for array in cache._arrays.values():
        array[:] = 99
    addresses = {name: array.ctypes.data for name, array in cache._arrays.items()}
    rng = np.random.default_rng(1)
    for rows in (3, 1, 1, 2):
        before = {name: array.copy() for name, array in cache._arrays.items()}
        x = rng.standard_normal((rows, STACK_WIDTH)).astype(np.float32)
        call.set("x", x)
        cache.begin(rows)
        assert call.run()["y"].shape == (rows, STACK_WIDTH)
        new = slice(cache.length, cache.length + rows)
        for name, array in cache._arrays.items():
            untouched = np.ones(array.shape[2], bool)
            untouched[new] = False
            assert np.array_equal(array[:, :, untouched], before[name][:, :, untouched])
            assert not (array[:, :, new] == 99).any()
        values = x.reshape(rows, KV_HEADS, HEAD).transpose(1, 0, 2)
        assert np.array_equal(cache._arrays["value_cache.0"][0, :, new], values)
        cache.commit(rows)
    assert addresses == {name: array.ctypes.data for name, array in cache._arrays.items()}


class Greedy:
    """The likeliest id, always."""

    sampling, seed, turn, step, forced = Sampling(), 0, 0, 0, None

    def __init__(self, codes: int) -> None:
        self.seen = np.zeros(codes, np.uint8)

    def pick(self, logits: Any, sub_step: int) -> int:
        return int(logits.argmax())

    def took(self, ids: Any, logits: Any) -> None:
        assert (ids == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("native", [True, False])
def test_a_conversations_caches_stay_where_they_are(
    speech_bundle: Bundle, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setenv("EDGE_SDK_NATIVE", "off")
    elif ort_ops_unavailable():
        pytest.skip(ort_ops_unavailable())
    model = speech_bundle.manifest.model
    assert model
    assert model.speech_head
    context = Context(ort.open_runtime(speech_bundle, device_id=0, threads=2), model, 24, speech=True)
    head = context.speech_head
    assert isinstance(head, FusedSpeechHead if native else PlainSpeechHead)
    if isinstance(head, FusedSpeechHead):
        parts = {"cache": head._arrays["cache"].reshape(1, -1, *head._arrays["cache"].shape[3:])}
    else:
        parts = head.cache._arrays
        assert len(parts) == 2 * model.speech_head.num_layers
    arrays = {**context.backbone.cache._arrays, **{f"head.{n}": a for n, a in parts.items()}}
    greedy = Greedy(model.speech_ids.codebook_size)
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    ids = np.arange(10, 20)
    empty = np.zeros((0, model.backbone.hidden_size), np.float32)
    output = context.prefill(Prompt(ids, empty, np.zeros(0, np.int64), np.zeros(10, np.int64)))
    assert output
    group = head.start(greedy)
    for n in range(4):
        before = {name: array.copy() for name, array in arrays.items()}
        output = context.backbone.step(output.token, group)
        group = head.step(output.head_input, greedy)
        for name, array in arrays.items():
            at, count = (50 + 5 * n, 5) if name.startswith("head.") else (10 + n, 1)
            changed = (array != before[name]).any(axis=(0, 1, 3))
            assert changed[at : at + count].all(), name
            assert not np.delete(changed, range(at, at + count)).any(), name
    assert addresses == {name: array.ctypes.data for name, array in arrays.items()}


def test_two_chats_share_engines_and_keep_their_own_caches(speech_bundle: Bundle) -> None:
    with Chat(speech_bundle, context_tokens=64) as a, Chat(speech_bundle, context_tokens=64) as b:
        assert a._runtime is b._runtime
        mine, other = (
            {array.ctypes.data for array in chat._context.backbone.cache._arrays.values()} for chat in (a, b)
        )
        assert not mine & other


def test_caches_have_pages_of_their_own() -> None:
    """They go back to the system with the array, whatever thread it was made in, and start at zero."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Bundle.open(RANDOM) as bundle:
        runtime = bundle.runtime("onnxruntime")
        for shape, dtype in (((3, 5), np.float32), ((), np.int64), ((0, 7), np.int8), ((64, 1024, 2), np.float16)):
            array = runtime.zeros(shape, dtype)
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
            assert not array.any()
            assert array.flags.c_contiguous
            assert array.flags.writeable
        before = resident()
        held = [runtime.zeros((1 << 17,), np.uint8) for _ in range(512)]
        for one in held:
            one.fill(1)
        assert resident() - before > 60e6
        del held, one, array
        assert resident() - before < 10e6
        with pytest.raises(MemoryError, match="no memory for an array of"):
            runtime.zeros((1 << 62,), np.uint8)
