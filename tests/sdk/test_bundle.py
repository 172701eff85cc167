"""A bundle that is damaged, hostile or of another version is an error that says so; a good one opens everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import manifest as manifest_module
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from edge_sdk.manifest import MANIFEST_NAME, parse_manifest
from tests.sdk.small_bundle import VOICE, WEIGHT, change, refuses, rewrite, settle

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


def test_a_manifest_written_and_read_is_the_same(original: Path) -> None:
    first = parse_manifest((original / MANIFEST_NAME).read_bytes(), "b")
    changed = dataclasses.replace(first, name="näme \u2028", notes=("a", "b"), source={"x": [1, 2.5, None]})
    assert parse_manifest(manifest_module.manifest_bytes(changed), "b") == changed
