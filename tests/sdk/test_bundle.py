"""A bundle that is damaged, hostile or of another version is an error that says so; a good one opens everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_sdk import bundle as bundle_module
from edge_sdk import manifest as manifest_module
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.config import FlowConfig, VocoderConfig, WaveformConfig
from edge_sdk.errors import BundleError
from edge_sdk.export.bundle_writer import BundleWriter, pack
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.generation import GenerationConfig
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, MANIFEST_NAME, GraphEntry, Manifest, parse_manifest
from edge_sdk.storage import check_name
from tests import speech_goldens as goldens
from tests import tolerances

SLOW_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
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


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a few KB that has one of everything but a model."""
    writer = BundleWriter(tmp_path_factory.mktemp("small") / "small.bundle", "test", resume=False, overwrite=False)
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


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "small.bundle"))


@pytest.fixture
def packed(original: Path, tmp_path: Path) -> Path:
    pack(original, tmp_path / "small.zip")
    return tmp_path / "small.zip"


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


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths of bundles whose files were hashed."""
    seen: list[Path] = []
    plain = Bundle.check_hashes
    monkeypatch.setattr(Bundle, "check_hashes", lambda self: (seen.append(self.path), plain(self)))
    return seen


# -- a good bundle


def test_a_good_bundle_opens(folder: Path) -> None:
    with Bundle.open(str(folder)) as bundle:
        assert (bundle.name, bundle.path) == ("small", folder)
        assert bundle.digest == hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
        assert np.array_equal(bundle.voice(), VOICE)
        assert np.array_equal(bundle.voice("alto"), VOICE)
        assert bundle.read_text("chat_template.jinja") == "{{ messages }}"
        assert bundle.read_json("numbers.json") == [1, 2]
        assert bundle.read("adder.bin") == WEIGHT.tobytes()
        assert bundle.read("adder.bin").readonly
        assert "small" in repr(bundle)
        assert bundle.verify() == {"selftest": "none recorded"}


def test_what_it_does_not_have_is_said(folder: Path) -> None:
    with Bundle.open(folder) as bundle:
        with pytest.raises(BundleError, match="no voice 'basso'; it has alto"):
            bundle.voice("basso")
        with pytest.raises(BundleError, match=r"lists no file 'x\.bin'"):
            bundle.read("x.bin")
        with pytest.raises(BundleError, match=r"'adder\.bin' is not JSON"):
            bundle.read_json("adder.bin")
        with pytest.raises(BundleError, match="no graph 'encoder'; it has adder, doubler"):
            bundle.runtime().engine("encoder")
    with pytest.raises(BundleError, match=r"no bundle at '/nowhere/x'.*export"):
        Bundle.open("/nowhere/x")
    with pytest.raises(BundleError, match=r"cannot read the bundle .*File name too long"):
        Bundle.open("x" * 300)


def test_a_file_that_no_text_is_in(folder: Path) -> None:
    rewrite(folder, "chat_template.jinja", b"\xff\xfe")
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=r"'chat_template\.jinja' is not UTF-8"):
        bundle.read_text("chat_template.jinja")


def test_extra_files_are_ignored(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "engines" / "deep").mkdir(parents=True)
    (folder / "engines" / "deep" / "x.so").write_bytes(b"\x7fELF")
    (folder / "dangling").symlink_to(folder / "gone")
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="lists no file"):
        bundle.read("notes.txt")


def test_a_closed_bundle_says_so(folder: Path, packed: Path) -> None:
    for path in (folder, packed):
        bundle = Bundle.open(path)
        view = bundle.read("adder.bin")
        bundle.close()
        bundle.close()
        for use in (lambda: bundle.read("adder.bin"), bundle.voice, bundle.verify, bundle.runtime):  # noqa: B023
            with pytest.raises(BundleError, match="is closed"):
                use()
        assert view == WEIGHT.tobytes(), "what was handed out before stays"


def test_weights_are_mapped_and_shared_not_read(folder: Path, packed: Path) -> None:
    for path, file in ((folder, folder / "adder.bin"), (packed, packed)):
        with Bundle.open(path) as bundle:
            held = bundle.read("adder.bin")
            lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
            assert lines
            assert all(line.split()[1] == "r--s" for line in lines)
            del held
        assert str(file) not in Path("/proc/self/maps").read_text(), "closed, and let go"


# -- damage


def test_a_flipped_byte_anywhere_is_found(original: Path, tmp_path: Path) -> None:
    """Before there is a stamp, and after: a touched file is hashed again."""
    names = sorted(p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file())
    whole = parse_manifest((original / MANIFEST_NAME).read_bytes(), "")
    folder = Path(shutil.copytree(original, tmp_path / "small.bundle"))

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(names), st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 7))
    def run(name: str, place: int, mask: int, once_in_a_while: int) -> None:
        if once_in_a_while == 7:
            settle()
            with Bundle.open(folder) as bundle:
                assert bundle._stamp_is_fresh()
        data = (folder / name).read_bytes()
        damaged = bytearray(data)
        damaged[place % len(data)] ^= mask
        (folder / name).write_bytes(damaged)
        try:
            opened = Bundle.open(folder)
        except BundleError:
            pass
        else:  # a manifest may be laid out differently: another kind of space, an escape in capitals
            assert name == MANIFEST_NAME
            assert opened.manifest == whole
        finally:
            (folder / name).write_bytes(data)

    run()


def test_a_file_cut_or_grown_or_gone_is_named(folder: Path) -> None:
    for name in ("adder.bin", "adder.onnx", "voices/alto.npy", "numbers.json"):
        path = folder / name
        data = path.read_bytes()
        for other in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            path.write_bytes(other)
            refuses(folder, f"'{name}' has {len(other)} bytes, expected {len(data)}.*again")
        path.unlink()
        refuses(folder, f"'{name}' is missing")
        path.mkdir()
        refuses(folder, f"'{name}' is missing")
        path.rmdir()
        path.write_bytes(data)
    Bundle.open(folder).close()
    (folder / "adder.bin").unlink()
    (folder / "noise.npy").unlink()
    refuses(folder, "'adder.bin' is missing; 'noise.npy' is missing")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    refuses(path, "is not a bundle: it has no manifest")
    (path / MANIFEST_NAME).mkdir()
    refuses(path, "is not a bundle: it has no manifest")


# -- versions and the manifest


@pytest.mark.parametrize("version", [2, 10**30])
def test_a_newer_version_is_refused_before_anything_else(folder: Path, version: int) -> None:
    value = json.loads((folder / MANIFEST_NAME).read_text())
    value.update(format_version=version, something="new", checksum={"of": "another kind"})
    (folder / MANIFEST_NAME).write_text(json.dumps(value))
    refuses(folder, f"format version {version}, this edge_sdk reads up to 1: update edge_sdk")


@pytest.mark.parametrize("version", [0, -1, True, None, "1", 1.0, [1], {}])
def test_a_malformed_version(folder: Path, version: Any) -> None:
    change(folder, lambda m: m.update(format_version=version))
    refuses(folder, "malformed format_version")
    change(folder, lambda m: m.pop("format_version"))
    refuses(folder, "malformed format_version None")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(extra=1), r"unknown \['extra'\]"),
        (lambda m: m["graphs"]["adder"].update(extra=1), r"manifest\.graphs\.adder: unknown \['extra'\]"),
        (lambda m: m["files"]["adder.bin"].update(mode=1), r"manifest\.files\.adder\.bin: unknown \['mode'\]"),
        (lambda m: m["vocoder"]["flow"].update(x=1), r"vocoder\.flow: unknown \['x'\]"),
        (lambda m: m.pop("graphs"), r"missing \['graphs'\]"),
        (lambda m: m["graphs"]["adder"].pop("ops"), r"graphs\.adder: missing \['ops'\]"),
        (lambda m: m.update(name=3), r"manifest\.name must be str, found 3"),
        (lambda m: m.update(graphs=[]), r"manifest\.graphs must be dict"),
        (lambda m: m["files"]["adder.bin"].update(size="9"), r"adder\.bin\.size must be int"),
        (lambda m: m["files"]["adder.bin"].update(size=True), r"adder\.bin\.size must be int"),
        (lambda m: m["vocoder"]["flow"].update(steps=[10, "5"]), r"flow\.steps\[1\] must be int"),
        (lambda m: m.update(model={}), r"manifest\.model: missing"),
        (lambda m: m.update(format="zip"), "does not say format"),
        (lambda m: m.update(noise="gone.npy"), r"uses 'gone\.npy' but lists no hash"),
        (lambda m: m["graphs"]["adder"].update(data="gone.bin"), r"uses 'gone\.bin' but lists no hash"),
        (lambda m: m["vocoder"]["voices"].update(alto="gone.npy"), r"uses 'gone\.npy' but lists no hash"),
        (lambda m: m["files"]["adder.bin"].update(sha256="0" * 64), r"'adder\.bin' is damaged"),
        (lambda m: m["files"]["adder.bin"].update(sha256=""), r"'adder\.bin' is damaged"),
    ],
)
def test_a_manifest_that_says_something_else(folder: Path, edit: Any, message: str) -> None:
    change(folder, edit)
    refuses(folder, message)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "x", "dtype": "float32"},
        {"name": "x", "dtype": "complex64", "shape": []},
        {"name": "x", "dtype": ["float32"], "shape": []},
        {"name": "x", "dtype": "float32", "shape": [-1]},
        {"name": "x", "dtype": "float32", "shape": [True]},
        {"name": "x", "dtype": "float32", "shape": 3},
        {"name": 3, "dtype": "float32", "shape": []},
    ],
)
def test_a_malformed_border_is_an_error_when_the_graph_is_opened(folder: Path, spec: Any) -> None:
    change(folder, lambda m: m["graphs"]["adder"].update(inputs=[spec]))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="tensor"):
        bundle.runtime().engine("adder")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"null",
        b'"edge_sdk.bundle"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"format": "edge_sdk.bundle", "format_version": ' + b"9" * 5000 + b"}",
        b'{"format": "edge_sdk.bundle", "format_version": 1}',
        b'{"format": "edge_sdk.bundle", "format_version": 1, "checksum": NaN}',
    ],
    ids=lambda data: repr(data[:16]),
)
def test_a_manifest_that_is_no_manifest(folder: Path, data: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(data)
    refuses(folder, r"manifest\.json")


def test_a_manifest_beyond_any_size_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST_NAME).open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no disk is used
    refuses(folder, "more than any bundle needs")


def test_an_edited_manifest_is_found_by_its_checksum(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    text = path.read_text()
    path.write_text(text.replace('"cfg_rate": 0.7', '"cfg_rate": 0.8'))
    refuses(folder, "manifest.json is damaged or was edited")
    value = json.loads(text)
    path.write_text(json.dumps(value))  # laid out differently: the same content
    Bundle.open(folder).close()
    del value["checksum"]
    path.write_text(json.dumps(value))
    refuses(folder, "manifest.json is damaged or was edited")


# -- names and links


BAD_NAMES = [
    "/etc/passwd", "../small.bundle/adder.bin", "voices/../adder.bin", "..", ".", "./adder.bin", "voices//alto.npy",
    "voices/", "voices\\alto.npy", "..\\x", "C:x", "C:\\x", "", "a\0b", "a\nb", "\ud800", "file:x", "~/x/..",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "use",
    [
        lambda m, name: m["files"].update({name: {"sha256": "0", "size": 1}}),
        lambda m, name: (
            m["graphs"]["adder"].update(file=name) if name else m["files"].update({"": m["files"].popitem()[1]})
        ),
        lambda m, name: m["graphs"]["adder"].update(data=name or "/"),
        lambda m, name: m["vocoder"]["voices"].update(alto=name or "/"),
        lambda m, name: m.update(noise=name or "/"),
        lambda m, name: m.update(selftest=name or "/"),
        lambda m, name: m.update(tokenizer=name or "/"),
    ],
    ids=["files", "graph", "data", "voice", "noise", "selftest", "tokenizer"],
)
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str, use: Any) -> None:
    change(folder, lambda m: use(m, name))
    refuses(folder, "which is not a plain path inside the bundle")


@given(st.text(alphabet="a./\\:~ é\0\ud800", max_size=12))
def test_names_that_pass_stay_inside(name: str) -> None:
    try:
        assert check_name(name, "b") == name
    except BundleError:
        return
    root = Path("/nowhere/root")
    assert Path(os.path.normpath(root / name)).is_relative_to(root)
    assert str(root / name) == f"{root}/{name}"
    os.fsencode(name)


def test_links(folder: Path, tmp_path: Path) -> None:
    """Inside they are files like others; out of the bundle they are refused, for a file and for a directory."""
    outside = tmp_path / "outside"
    shutil.copytree(folder / "voices", outside / "voices")
    shutil.copy(folder / "adder.bin", outside / "adder.bin")

    (folder / "adder.bin").rename(folder / "real.bin")
    (folder / "adder.bin").symlink_to("real.bin")
    Bundle.open(folder).close()

    for target in (outside / "adder.bin", Path("../outside/adder.bin")):
        (folder / "adder.bin").unlink()
        (folder / "adder.bin").symlink_to(target)
        refuses(folder, r"'adder\.bin' is a link that leaves the bundle")
    (folder / "adder.bin").unlink()
    (folder / "adder.bin").symlink_to("adder.bin")  # to itself
    refuses(folder, r"'adder\.bin' is missing")
    (folder / "adder.bin").unlink()
    (folder / "adder.bin").symlink_to("gone")
    refuses(folder, r"'adder\.bin' is missing")
    (folder / "adder.bin").unlink()
    (folder / "real.bin").rename(folder / "adder.bin")
    Bundle.open(folder).close()

    shutil.rmtree(folder / "voices")
    (folder / "voices").symlink_to(outside / "voices", target_is_directory=True)
    refuses(folder, r"'voices/alto\.npy' is a link that leaves the bundle")


def test_the_bundle_itself_may_be_a_link(folder: Path, packed: Path, tmp_path: Path) -> None:
    for n, target in enumerate((folder, packed)):
        (tmp_path / f"link{n}").symlink_to(target)
        with Bundle.open(tmp_path / f"link{n}") as bundle:
            assert np.array_equal(bundle.voice(), VOICE)


# -- graphs


def graph_with(node: onnx.NodeProto, initializers: Any = (), functions: Any = ()) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [32, 32])], initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=list(functions))
    return bytes(model.SerializeToString())


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[32, 32])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_an_op_that_the_manifest_does_not_name(folder: Path) -> None:
    rewrite(folder, "adder.onnx", graph_with(helper.make_node("Neg", ["x"], ["y"])))
    refuses(folder, r"graph 'adder' uses ops its manifest does not name: \['::Neg'\]")
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Neg"]))
    Bundle.open(folder).close()


def test_a_function_excuses_no_op(folder: Path) -> None:
    """A runtime that has an op of that name runs it and not the function: onnxruntime does with Neg."""
    identity = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function("", "Neg", ["a"], ["b"], [identity], [helper.make_opsetid("", 23)])
    rewrite(folder, "adder.onnx", graph_with(helper.make_node("Neg", ["x"], ["y"]), functions=[function]))
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Identity"]))
    refuses(folder, r"graph 'adder' uses ops its manifest does not name: \['::Neg'\]")
    change(folder, lambda m: m["graphs"]["adder"].update(ops=["::Identity", "::Neg"]))
    Bundle.open(folder).close()


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "doubler.onnx", "noise.npy", ""])
@pytest.mark.parametrize("name", ["adder", "doubler"])
def test_external_data_elsewhere(folder: Path, name: str, location: str) -> None:
    """For a graph with a data file of its own, and for one without."""
    node = helper.make_node("Add" if name == "adder" else "Mul", ["x", "w"], ["y"])
    rewrite(folder, f"{name}.onnx", graph_with(node, [external(location)]))
    refuses(folder, f"graph '{name}' reads files its manifest does not name")


def test_external_data_hidden_in_an_attribute_or_a_subgraph(folder: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [external("../x")])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"], value=external("../x")),
        helper.make_node("Add", ["x", "x"], ["y"], values=[external("../x")]),
        helper.make_node("Add", ["x", "x"], ["y"], body=inner),
    ]
    for node in nodes:
        rewrite(folder, "adder.onnx", graph_with(node))
        refuses(folder, r"reads files its manifest does not name: \['\.\./x'\]")


def test_a_cut_graph_with_its_hash_put_right(folder: Path) -> None:
    data = (folder / "adder.onnx").read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        rewrite(folder, "adder.onnx", data[:length])
        refuses(folder, r"'adder\.onnx' is (cut short or )?not an ONNX model")


def test_a_graph_in_the_runtimes_own_format_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime opens its own format from the same bytes unless told otherwise, and its ops were never checked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession((folder / "doubler.onnx").read_bytes(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "m.ort").read_bytes()
    assert onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).get_inputs()[0].name == "x"
    rewrite(folder, "doubler.onnx", data)
    refuses(folder, "not an ONNX model")
    monkeypatch.setattr(Bundle, "_check_graphs", lambda self: None)
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="cannot open graph 'doubler'"):
        bundle.runtime().engine("doubler")


# -- one file


def test_a_packed_bundle_is_the_same(folder: Path, packed: Path) -> None:
    with Bundle.open(folder) as a, Bundle.open(packed) as b:
        assert (a.digest, a.manifest) == (b.digest, b.manifest)
        assert all(a.read(name) == b.read(name) for name in a.manifest.files)
        assert np.array_equal(a.voice(), b.voice())
        x = np.ones((32, 32), np.float32)
        for bundle in (a, b):
            call = bundle.runtime(threads=1).engine("adder").call()
            call.set("x", x)
            call.fetch("y")
            assert np.array_equal(call.run()["y"], x + WEIGHT)


def test_the_same_tokens_from_a_folder_and_from_one_file(speech_bundle_path: Path, tmp_path: Path) -> None:
    pack(speech_bundle_path, tmp_path / "one.bundle")
    config = GenerationConfig(max_new_tokens=10, do_sample=False)
    replies = []
    for path in (speech_bundle_path, tmp_path / "one.bundle"):
        with Chat(path, generation=config, context_tokens=128) as chat:
            replies.append(chat.send(str(goldens.recording("syn1p3")), "And?"))
    assert replies[0].text_ids == replies[1].text_ids
    assert replies[0].speech_ids == replies[1].speech_ids
    assert replies[0].speech_ids


def rezip(packed: Path, target: Path, **how: Any) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(target, "w", **how) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))


def test_a_zip_made_by_others_will_do_if_it_is_stored(packed: Path, tmp_path: Path) -> None:
    rezip(packed, tmp_path / "small2.zip")
    Bundle.open(tmp_path / "small2.zip").close()
    with zipfile.ZipFile(tmp_path / "small2.zip", "a") as archive:
        archive.writestr("extra/", b"")
        archive.writestr("extra/notes.txt", b"mine")
    Bundle.open(tmp_path / "small2.zip").close()


def test_a_compressed_zip(packed: Path, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        rezip(packed, tmp_path / "small2.zip", compression=method)
        refuses(tmp_path / "small2.zip", "compressed or encrypted; store it plainly")


def test_an_encrypted_zip(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # an entry of the directory; its flags are 8 bytes in
    data[at + 8] |= 1
    packed.write_bytes(data)
    refuses(packed, "compressed or encrypted; store it plainly")


def test_a_zip_with_a_prefix_works(packed: Path) -> None:
    """As self-extracting archives have it: the directory's offsets count from behind the prefix."""
    packed.write_bytes(b"#!/bin/sh\nexit 1\n" + packed.read_bytes())
    with Bundle.open(packed) as bundle:
        assert np.array_equal(bundle.voice(), VOICE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice(packed: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("adder.bin", WEIGHT.tobytes())
    refuses(packed, r"holds 'adder\.bin' twice")


def test_entries_that_overlap(packed: Path) -> None:
    """Two names for one place: what one program checks, another would read."""
    data = bytearray(packed.read_bytes())
    entries = [m for m in range(len(data)) if data[m : m + 4] == b"PK\x01\x02"]
    first, second = entries[-2], entries[-1]
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # the local header's offset
    packed.write_bytes(data)
    refuses(packed, "overlaps the entry before it")


def test_an_entry_that_reaches_into_the_directory(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    last = data.rindex(b"PK\x01\x02")
    for offset in (20, 24):  # both sizes
        size = int.from_bytes(data[last + offset : last + offset + 4], "little")
        data[last + offset : last + offset + 4] = (size + 40).to_bytes(4, "little")
    packed.write_bytes(data)
    refuses(packed, "reaches past the end of the members")


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a\\b", "C:x"])
def test_an_entry_name_that_leaves(packed: Path, name: str) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("QQQQ"[: len(name)] + "Q" * (len(name) - 4), b"x")
    data = packed.read_bytes()
    placeholder = ("QQQQ"[: len(name)] + "Q" * (len(name) - 4)).encode()
    packed.write_bytes(data.replace(placeholder, name.encode()))
    refuses(packed, "is not a plain path inside the bundle")


def test_an_entry_without_a_name(packed: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"x")
    refuses(packed, "names the file '', which is not a plain path")


def test_a_cut_or_changed_zip_is_an_error(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    with Bundle.open(packed) as bundle:
        expected = {name: bytes(bundle.read(name)) for name in bundle.manifest.files}
    target = tmp_path / "small-damaged.zip"

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255), st.booleans())
    def run(place: int, mask: int, near_the_end: bool) -> None:
        if near_the_end:  # where the directory is
            place = len(whole) - 1 - place % 1200
        damaged = bytearray(whole)
        damaged[place] ^= mask
        target.write_bytes(damaged if mask else whole[:place])
        try:
            with Bundle.open(target) as opened:  # padding, dates and the like have no meaning
                assert {name: bytes(opened.read(name)) for name in opened.manifest.files} == expected
            assert mask
        except BundleError:
            pass

    run()


def test_a_file_that_may_not_be_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be whole, so nobody is told to copy it again. Said by the system here, since root may read everything."""

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(packed))

    monkeypatch.setattr("edge_sdk.storage.map_file", refuse)
    with pytest.raises(BundleError, match=r"^cannot read the bundle '.*': Permission denied$"):
        Bundle.open(packed)


@pytest.mark.parametrize("data", [b"", b"PK", b"RIFF....WAVE", b"PK\x05\x06" + bytes(18), b"\x1f\x8b" + bytes(100)])
def test_a_file_that_is_no_bundle(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "small").write_bytes(data)
    refuses(tmp_path / "small", r"is not a bundle|neither a directory nor a readable zip")


@pytest.mark.parametrize(
    "end",
    [
        # the end record's offset and size of the directory, each far off
        b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + b"\xff\xff\xff\xff" + bytes(4) + b"\0\0",
        b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + bytes(4) + b"\xff\xff\xff\xff" + b"\0\0",
        # the 64-bit end record with an offset no seek takes
        b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(4) + bytes(8) + (1).to_bytes(8, "little") * 2
        + b"\xff" * 8 + b"\xff" * 8
        + b"PK\x06\x07" + bytes(4) + bytes(8) + b"\1\0\0\0"
        + b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + b"\0\0",
    ],
)  # fmt: skip
def test_a_zip_whose_end_points_nowhere(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "small").write_bytes(bytes(64) + end)
    refuses(tmp_path / "small", "is not a bundle|neither a directory nor a readable zip")


# -- arrays


class Harm:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/edge_sdk-test-pickle-was-run"),))


def bare_header(text: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (8,), }"
BAD_ARRAYS = {
    "a pickle": __import__("pickle").dumps(VOICE),
    "a pickle that does something": __import__("pickle").dumps(Harm()),
    "an object array": npy(np.array([Harm()] * 8, object)),
    "structured objects": npy(np.zeros(8, [("a", "O")])),
    "text": npy(np.array(["a"] * 8)),
    "complex": npy(np.zeros(8, complex)),
    "an archive": npz(a=VOICE),
    "nothing": b"",
    "magic only": b"\x93NUMPY\1\0",
    "cut": npy(VOICE)[:-1],
    "a tail": npy(VOICE) + b"\0",
    "another version": bare_header(HEADER, b"\2\0"),
    "no source": bare_header("((((((((("),
    "an open string": bare_header("{'descr': '''"),
    "deep": bare_header("(" * 9000),
    "long": bare_header(" " * 20000 + HEADER),
    "too many": bare_header(HEADER.replace("(8,)", "(1 << 62,)")),
    "huge": bare_header(HEADER.replace("(8,)", f"({2**62},)")),
    "negative": bare_header(HEADER.replace("(8,)", "(-8,)")),
    "a call": bare_header("__import__('os').getcwd()"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_not_plain(folder: Path, kind: str) -> None:
    rewrite(folder, "voices/alto.npy", BAD_ARRAYS[kind])
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=r"'voices/alto\.npy' is not a plain \.npy"):
        bundle.voice()
    assert not Path("/tmp/edge_sdk-test-pickle-was-run").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VOICE[:7], r"voice 'alto' must be float32 \[8\], found float32\[7\]"),
        (VOICE[None], r"found float32\[1, 8\]"),
        (VOICE.astype(np.float64), r"found float64\[8\]"),
        (VOICE.astype(">f4"), r"found >f4\[8\]"),
        (np.full(8, np.nan, np.float32), "voice 'alto' holds NaN"),
    ],
)
def test_voices_that_do_not_fit(folder: Path, array: Any, message: str) -> None:
    rewrite(folder, "voices/alto.npy", npy(array))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=message):
        bundle.voice()


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_FIXTURE)
@given(data=st.data())
def test_any_plain_array_comes_back(data: Any, folder: Path) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = data.draw(st.sampled_from(["<f4", "<f2", "<i8", "u1", "?", ">i2"]))
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    rewrite(folder, "noise.npy", npy(array))
    with Bundle.open(folder) as bundle:
        found = bundle.read_array("noise.npy")
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.flags.c_contiguous


# -- the stamp


def test_hashed_once_and_again_when_a_file_was_touched(folder: Path, hashings: list[Path]) -> None:
    settle()
    for _ in range(3):
        Bundle.open(folder).close()
    assert len(hashings) == 1
    path = folder / "adder.bin"

    path.touch()
    settle()
    for _ in range(2):
        Bundle.open(folder).close()
    assert len(hashings) == 2

    status = path.stat()
    data = bytearray(path.read_bytes())  # changed, with its times put back
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refuses(folder, r"'adder\.bin' is damaged")
    data[100] ^= 1
    path.write_bytes(data)

    copy = path.with_name("copy")  # replaced by another file with the same times
    shutil.copy2(path, copy)
    settle()
    Bundle.open(folder).close()
    before = len(hashings)
    copy.replace(path)
    Bundle.open(folder).close()
    assert len(hashings) == before + 1


def test_what_was_written_this_moment_is_not_taken_as_known(folder: Path, hashings: list[Path]) -> None:
    """It may be written to again within the same tick of the clock."""
    (folder / "numbers.json").touch()
    for _ in range(2):
        Bundle.open(folder).close()
    assert len(hashings) == 2


def test_a_packed_bundle_is_hashed_once_too(packed: Path, hashings: list[Path]) -> None:
    settle()
    for _ in range(2):
        Bundle.open(packed).close()
    assert len(hashings) == 1
    data = bytearray(packed.read_bytes())
    data[data.index(WEIGHT.tobytes()) + 5] ^= 1
    packed.write_bytes(data)
    refuses(packed, r"'adder\.bin' is damaged")


def test_two_copies_do_not_displace_each_other(folder: Path, tmp_path: Path, hashings: list[Path]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "small2.bundle"))
    settle()
    for _ in range(3):
        for path in (folder, copy):
            Bundle.open(path).close()
    assert sorted(hashings) == sorted([folder, copy])


def test_what_is_replaced_while_it_is_hashed_is_not_stamped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Bundle.read
    settle()

    def read(self: Bundle, name: str) -> memoryview:
        data = plain(self, name)
        if name == "numbers.json":  # the last file; the first has been hashed
            weights = bytearray(WEIGHT.tobytes())
            weights[0] ^= 1
            (folder / "adder.bin").write_bytes(weights)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "read", read)
        Bundle.open(folder)
    refuses(folder, r"'adder\.bin' is damaged")


@pytest.mark.parametrize("stamp", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"adder.bin": 3}'])
def test_a_strange_stamp_counts_for_nothing(folder: Path, hashings: list[Path], stamp: bytes) -> None:
    settle()
    bundle = Bundle.open(folder)
    bundle._stamp_file().write_bytes(stamp)
    bundle.close()
    Bundle.open(folder).close()
    assert len(hashings) == 2


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))  # no directory can be made in a file
    Bundle.open(folder).close()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    Bundle.open(folder).close()


def test_many_threads_open_one_bundle(folder: Path) -> None:
    failures: list[BaseException] = []
    settle()

    def run() -> None:
        try:
            with Bundle.open(folder) as bundle:
                bundle.check_hashes()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Bundle.open(folder) as bundle:
        assert bundle._stamp_is_fresh()
        assert {p.suffix for p in bundle._stamp_file().parent.iterdir()} == {".json"}, "nothing is left behind"


def test_several_processes_share_a_bundle(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from edge_sdk.bundle import Bundle\n"
        "with Bundle.open(sys.argv[1]) as b:\n"
        "    call = b.runtime(threads=1).engine('adder').call()\n"
        "    call.set('x', np.ones((32, 32), np.float32)); call.fetch('y')\n"
        "    print(int(call.run()['y'].sum()))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "fresh")}
    running = [
        subprocess.Popen([sys.executable, "-c", program, folder], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert {process.communicate(timeout=60)[0].strip() for process in running} == {str(int(WEIGHT.sum()) + 1024)}


def test_one_runtime_for_all_who_ask_alike(folder: Path) -> None:
    with Bundle.open(folder) as bundle:
        assert bundle.runtime() is bundle.runtime("onnxruntime")
        assert bundle.runtime().engine("adder") is bundle.runtime().engine("adder")
        assert bundle.runtime(threads=1) is not bundle.runtime()


# -- verify


def test_verify_runs_the_recorded_self_test(speech_bundle: Bundle) -> None:
    report = speech_bundle.verify()
    assert report["text_ids_equal"]
    assert report["speech_ids_equal"]
    errors = [report[name] for name in ("rows_error", "text_scores_error", "speech_scores_error")]
    assert max(errors) < tolerances.SELFTEST_RELATIVE


def wrong(folder: Path, graph: str, factor: float) -> Iterator[str]:
    """Scale one large weight after the other; yields its name."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    data_file = folder / f"{'speech_head' if graph == 'speech_input' else graph}.bin"  # these two share one
    whole = data_file.read_bytes()
    for tensor in model.graph.initializer:
        place = {e.key: e.value for e in tensor.external_data}
        if not place or (graph != "encoder" and ("q_proj" in tensor.name or "k_proj" in tensor.name)):
            continue  # what follows these two normalises them
        data = np.frombuffer(whole, np.uint8).copy()
        begin = int(place["offset"])
        data[begin : begin + int(place["length"])].view(np.float32)[:] *= np.float32(factor)
        data_file.write_bytes(data.tobytes())
        change(folder, lambda m: None, rehash=True)
        yield tensor.name
    data_file.write_bytes(whole)


@pytest.mark.parametrize(
    ("graph", "names"), [("encoder", 16), ("backbone", 18), ("speech_input", 1), ("speech_head", 12)]
)
def test_wrong_weights_with_right_hashes_fail_the_self_test(
    speech_bundle_path: Path, tmp_path: Path, graph: str, names: int
) -> None:
    """One weight off by half a percent: no hash can know, but the recorded answer does."""
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    seen = []
    for name in wrong(folder, graph, 1.005):
        seen.append(name)
        if len(seen) % 3 == 1:  # every third, for time
            with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="does not give on this machine"):
                bundle.verify()
    assert len(seen) == names


def test_a_wrong_constant_fails_the_self_test(speech_bundle_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    change(folder, lambda m: m["model"]["backbone"].update(rope_theta=1e6))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="does not give on this machine"):
        bundle.verify()


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.update(text_ids=[]),
        lambda r: r.update(rows=r["rows"][:-1]),
        lambda r: r.update(rows=["x"] * len(r["rows"])),
        lambda r: r.update(rows={"a": 1}),
        lambda r: r.update(rows=[float("nan")] * len(r["rows"])),
        lambda r: r.update(text_scores=None),
        lambda r: r.update(rms="loud"),
        lambda r: r.update(picks={"text": "no", "speech": None}),
        lambda r: r["picks"].update(text=[10**9]),
        lambda r: r["picks"].update(speech=[-1] * len(r["picks"]["speech"])),
        lambda r: r["picks"].pop("text"),
        lambda r: r.update(samples=1),
        lambda r: r.pop("rms"),
        lambda r: r.update(more=1),
    ],
)
def test_a_strange_record_fails_the_self_test(speech_bundle_path: Path, tmp_path: Path, edit: Any) -> None:
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    recorded = json.loads((folder / "selftest.json").read_text())
    edit(recorded)
    rewrite(folder, "selftest.json", json.dumps(recorded).encode())
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=r"self-test|does not give on this machine"):
        bundle.verify()


def test_verify_hashes_even_with_a_stamp(folder: Path, hashings: list[Path]) -> None:
    with Bundle.open(folder) as bundle:
        bundle.verify()
    assert len(hashings) == 2


def test_verify_finds_what_changed_after_opening(folder: Path) -> None:
    with Bundle.open(folder) as bundle:
        data = bytearray(WEIGHT.tobytes())
        data[7] ^= 1
        (folder / "adder.bin").write_bytes(data)
        with pytest.raises(BundleError, match=r"'adder\.bin' is damaged"):
            bundle.verify()


def test_a_manifest_written_and_read_is_the_same(original: Path) -> None:
    first = parse_manifest((original / MANIFEST_NAME).read_bytes(), "b")
    changed = dataclasses.replace(first, name="näme \u2028", notes=("a", "b"), source={"x": [1, 2.5, None]})
    assert parse_manifest(manifest_module.manifest_bytes(changed), "b") == changed
