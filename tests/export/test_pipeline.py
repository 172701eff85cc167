"""The whole export: the same bytes every time, killed or out of disk at any moment, and never in the way of others."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, CheckpointError, Error, ExportError
from edge_sdk.export import pipeline
from edge_sdk.export.bundle_writer import work_path
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.graphs.builder import save_together
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import MoESpec, SpeechIdSpec, VocoderSpec, write_vocoder_checkpoint
from edge_sdk.manifest import MANIFEST_NAME, FileEntry, manifest_bytes, parse_manifest
from tests import tiny

GRAPHS = ("encoder", "backbone", "speech_input", "speech_head", "speech_head_fused")
DATA = ("encoder", "backbone", "speech_head")  # the graphs of the speech head share a file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def expected(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nothing disturbed."""
    return contents(export(whole, tmp_path_factory.mktemp("expected") / "out.bundle"))


def export(checkpoint: Path, output: Path, **options: Any) -> Path:
    return export_bundle(checkpoint, None, output, ExportOptions(**options))


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def left(output: Path) -> list[str]:
    """What lies beside the output and at it, work directory aside."""
    return sorted(p.name for p in output.parent.iterdir() if p != work_path(output))


# -- what is made


def test_two_exports_are_the_same_bytes(whole: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    assert contents(export(whole, tmp_path / "out.bundle")) == expected
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export(whole, tmp_path / name / "out.bundle", one_file=True)
    assert (tmp_path / "a" / "out.bundle").read_bytes() == (tmp_path / "b" / "out.bundle").read_bytes()


def test_one_file_and_a_folder_are_the_same_bundle(whole: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    with Bundle.open(export(whole, tmp_path / "out.bundle", one_file=True)) as bundle:
        assert bundle.digest == hashlib.sha256(expected[MANIFEST_NAME]).hexdigest()
        assert {name: bytes(bundle.read(name)) for name in bundle.manifest.files} == {
            name: data for name, data in expected.items() if name != MANIFEST_NAME
        }
        bundle.verify()


def test_what_the_manifest_says(whole: Path, expected: dict[str, bytes]) -> None:
    manifest = json.loads(expected[MANIFEST_NAME])
    assert set(manifest["files"]) == set(expected) - {MANIFEST_NAME}
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": hashlib.sha256(expected[name]).hexdigest(), "size": len(expected[name])}
    assert list(manifest["graphs"]) == list(GRAPHS)
    for key, graph in manifest["graphs"].items():
        assert graph["precision"] == "fp32"
        model = onnx.load_from_string(expected[graph["file"]])
        nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
        assert graph["ops"] == sorted({f"{n.domain}::{n.op_type}" for n in nodes}), key
    assert manifest["name"] == "out"
    assert manifest["generation"]["max_new_tokens"] == tiny.SPEC.max_new_tokens
    config = hashlib.sha256((whole / "config.json").read_bytes()).hexdigest()
    assert manifest["source"] == {"checkpoint": {"name": "whole", "config.json": config}}
    assert set(manifest["tools"]) == {"edge_sdk", "numpy", "onnx", "onnxruntime"}
    text = expected[MANIFEST_NAME].decode()
    assert str(whole.parent) not in text, "no path of this machine"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert expected[name] == (whole / name).read_bytes()


def test_name_and_notes(whole: Path, tmp_path: Path) -> None:
    with Bundle.open(export(whole, tmp_path / "x.bundle", name="Näme", notes=("one", "two"))) as bundle:
        assert (bundle.name, bundle.manifest.notes) == ("Näme", ("one", "two"))


def test_a_text_only_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny.write(tmp_path / "c", head=None)
    with Bundle.open(export(checkpoint, tmp_path / "x.bundle")) as bundle:
        assert list(bundle.manifest.graphs) == ["encoder", "backbone"]
        report = bundle.verify()
        assert report["speech_ids_equal"]


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "vocoder"
    spec = VocoderSpec(
        codes=36, dim=32, depth=1, heads=2, head_dim=16, lookahead_width=32, base_channels=32, f0_channels=32
    )
    write_vocoder_checkpoint(folder, spec, seed=1)
    return folder


def test_a_vocoder_alone(vocoder: Path, tmp_path: Path) -> None:
    """No language half: complete, with a self-test that knows every weight of it."""
    options = ExportOptions(noise_frames=100)
    with Bundle.open(export_bundle(None, vocoder, tmp_path / "x.bundle", options)) as bundle:
        assert bundle.manifest.model is None
        assert list(bundle.manifest.graphs) == ["flow_tokens", "flow", "f0", "waveform"]
        assert set(bundle.verify()) == {"mel_error", "streamed_mel_error", "waveform_error"}
    for graph in ("flow_tokens", "flow", "f0", "waveform"):
        folder = Path(shutil.copytree(tmp_path / "x.bundle", tmp_path / graph))
        spoil(folder, graph)
        with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="does not give on this machine"):
            bundle.verify()


def spoil(folder: Path, graph: str) -> None:
    """Half a percent on one of a graph's matrices, its hash put right."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    floats = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
    tensor = next(t for t in model.graph.initializer if t.external_data and t.data_type in floats and len(t.dims) > 1)
    place = {e.key: e.value for e in tensor.external_data}
    data = np.fromfile(folder / place["location"], np.uint8)
    begin = int(place["offset"])
    data[begin : begin + int(place["length"])].view(floats[tensor.data_type])[:] *= 1.005
    data.tofile(folder / place["location"])
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    entry = FileEntry(hashlib.sha256(data.tobytes()).hexdigest(), len(data))
    changed = dataclasses.replace(manifest, files={**manifest.files, place["location"]: entry})
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(changed))


def test_both_halves(whole: Path, vocoder: Path, tmp_path: Path) -> None:
    options = ExportOptions(noise_frames=200)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export_bundle(whole, vocoder, tmp_path / name / "out.bundle", options)
    assert contents(tmp_path / "a" / "out.bundle") == contents(tmp_path / "b" / "out.bundle")
    with Bundle.open(tmp_path / "a" / "out.bundle") as bundle:
        assert bundle.verify()["samples_equal"]
        assert set(bundle.manifest.source) == {"checkpoint", "vocoder"}


def test_halves_that_do_not_belong_together(vocoder: Path, tmp_path: Path) -> None:
    few = tiny.write(tmp_path / "few", speech=SpeechIdSpec.after(20))
    with pytest.raises(ExportError, match="knows 36 speech tokens, the checkpoint's codebook has only 24 rows"):
        export_bundle(few, vocoder, tmp_path / "x.bundle", ExportOptions(noise_frames=100))
    assert not (tmp_path / "x.bundle.partial").exists()


def test_progress_goes_on_and_ends(whole: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_bundle(whole, None, tmp_path / "x.bundle", progress=lambda *args: seen.append(args))
    assert [what for what, _, _ in seen] == [
        "checking sources", *(f"writing {name}" for name in DATA), "checking the bundle", "publishing",
    ]  # fmt: skip
    assert seen[-1][1] == seen[-1][2]
    assert all(0 <= done <= total for _, done, total in seen)


# -- what cannot be exported


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to export: give a checkpoint folder, a vocoder folder, or both"):
        export_bundle(None, None, tmp_path / "x.bundle")


def test_voices_without_a_vocoder(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="voices belong to a vocoder"):
        export_bundle(whole, None, tmp_path / "x.bundle", voices={"a": "a.npy"})


def test_an_unknown_precision(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="precision 'fp8' is not one of fp32, fp16, int8, int4"):
        export(whole, tmp_path / "x.bundle", precision="fp8")


def test_a_source_that_is_wrong_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    tiny.edit_tensors(checkpoint, lambda t: t.update(more=tiny.zeros("F32", 1)))
    with pytest.raises(CheckpointError, match="not part of this model: more"):
        export(checkpoint, tmp_path / "out" / "x.bundle")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        export(tmp_path / "gone", tmp_path / "out" / "x.bundle")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.bundle").write_text("mine")
    for overwrite, message in ((False, "exists already"), (True, "is not a bundle, so it is not overwritten")):
        with pytest.raises(ExportError, match=message):
            export(tmp_path / "gone", tmp_path / "x.bundle", overwrite=overwrite)
    assert (tmp_path / "x.bundle").read_text() == "mine"


def test_a_bundle_that_does_not_work_is_not_published(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(bundle: Bundle) -> Any:
        raise BundleError("graph 'backbone' cannot be opened")

    monkeypatch.setattr("edge_sdk.selftest.record_selftest", record)
    with pytest.raises(ExportError, match="the bundle was written but cannot be used: graph 'backbone'"):
        export(whole, tmp_path / "x.bundle")
    assert left(tmp_path / "x.bundle") == []


# -- where it may be written


def test_an_output_inside_the_checkpoints_folder(checkpoint: Path, expected: dict[str, bytes]) -> None:
    """Works, and what it writes there is not taken for a change of the source."""
    output = checkpoint / "out.bundle"

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing speech_head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, None, output, progress=stop)
    first = (work_path(output) / "bundle" / "backbone.bin").stat().st_ino
    assert written_by_resuming(checkpoint, output) == ["speech_head"]
    assert (output / "backbone.bin").stat().st_ino == first
    found = contents(output)
    assert {n: d for n, d in found.items() if n.endswith((".bin", ".onnx"))} == {
        n: d for n, d in expected.items() if n.endswith((".bin", ".onnx"))
    }
    export(checkpoint, output, overwrite=True)
    assert contents(output) == found


def test_an_output_that_would_take_the_source_away(checkpoint: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for output in (checkpoint, tmp_path):
        for overwrite in (False, True):
            with pytest.raises(ExportError, match=r"exists already|is not a bundle"):
                export(checkpoint, output, overwrite=overwrite)
    assert contents(tmp_path) == before
    bundle = export(checkpoint, tmp_path / "x.bundle")
    inside = Path(shutil.copytree(checkpoint, bundle / "source"))
    with pytest.raises(ExportError, match=r"source' lies inside the output .*choose another place"):
        export(inside, bundle, overwrite=True)
    assert (inside / "config.json").exists()


def test_a_target_that_cannot_be_written(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file" / "x.bundle", Path("/proc/x.bundle"), tmp_path / ("x" * 300)):
        with pytest.raises(ExportError, match=r"cannot write '.*(Not a directory|No such file|File name too long)"):
            export(whole, output)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Mounts a small file system; skips where that is not allowed."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_file_system(whole: Path, mounted: Any) -> None:
    place = mounted("size=1m,ro")
    with pytest.raises(ExportError, match=r"cannot write '.*x\.bundle\.partial': Read-only file system"):
        export(whole, place / "x.bundle")


@pytest.mark.parametrize("one_file", [False, True])
def test_a_disk_that_fills_up(whole: Path, mounted: Any, expected: dict[str, bytes], one_file: bool) -> None:
    """Real disks of several sizes; after more room was made the export goes on and the bundle is the same."""
    size = sum(map(len, expected.values())) // 1024
    place = mounted(f"size={size // 3}k")
    output = place / "out.bundle"
    for kilobytes in (size // 3, size // 2, size):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", place], check=True)
        with pytest.raises(ExportError, match=r"the disk is full while writing .*free some space and run again with"):
            export(whole, output, resume=True, one_file=one_file)
        assert left(output) == []
    subprocess.run(["mount", "-o", f"remount,size={4 * size}k", place], check=True)
    export(whole, output, resume=True, one_file=one_file)
    with Bundle.open(output) as bundle:
        assert all(bytes(bundle.read(name)) == expected[name] for name in bundle.manifest.files)
        assert bundle.digest == hashlib.sha256(expected[MANIFEST_NAME]).hexdigest()


# -- killed, or out of disk, at any moment

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def trial(checkpoint: Path, output: Path, options: Mapping[str, Any], at: int, how: str, report: Path) -> None:
    """Run in a process of its own: an export that is hit at its `at`-th moment.

    Moments are, for "kill", every touch of what lies around the output and every read of a tensor; for "full", what
    needs the disk. With "limit" no file can have more than `at` bytes.
    """
    count, surroundings, plain = 0, str(output.parent), Checkpoint.read

    def hit() -> None:
        nonlocal count
        count += 1
        if count == at and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == at and how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(surroundings):
            needs_disk = event in ("os.mkdir", "os.rename") or (event == "open" and arguments[2] & WRITING)
            if needs_disk or how == "kill":
                hit()

    def read(self: Checkpoint, name: str) -> Any:
        if how == "kill":
            hit()
        return plain(self, name)

    Checkpoint.read = read  # type: ignore[method-assign]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    else:
        sys.addaudithook(audit)
    try:
        export(checkpoint, output, **options)
        outcome = "done"
    except Error as e:
        outcome = f"{type(e).__name__}: {e}"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report.write_text(json.dumps([outcome, count]))


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children are forked from a server that has imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edge_sdk.chat", "edge_sdk.export.pipeline", "onnxruntime", "onnx", "tests.tiny"])
    return context


def run_trial(processes: Any, folder: Path, *arguments: Any) -> tuple[int | None, str, int]:
    """Exit code, what the export said, and how many moments there were."""
    report = folder / "report"
    report.unlink(missing_ok=True)
    process = processes.Process(target=trial, args=(*arguments, report))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    outcome, count = json.loads(report.read_text()) if report.exists() else ("", 0)
    return process.exitcode, outcome, count


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.bundle"


def moments(processes: Any, whole: Path, tmp_path: Path, how: str, options: Mapping[str, Any]) -> int:
    (tmp_path / "count").mkdir()
    output = tmp_path / "count" / "out.bundle"
    if options.get("overwrite"):
        (tmp_path / "count" / "out.bundle").mkdir()
    code, outcome, count = run_trial(processes, tmp_path, whole, output, options, 0, how)
    assert (code, outcome) == (0, "done")
    return count


@pytest.mark.parametrize(("options", "step"), [({}, 19), ({"one_file": True}, 60)], ids=["folder", "file"])
def test_killed_at_any_moment(
    processes: Any, whole: Path, tmp_path: Path, place: Path, expected: dict[str, bytes], options: Any, step: int
) -> None:
    """kill -9: nothing stands under the name; `resume` takes what was finished, and the bundle is the same."""
    total = moments(processes, whole, tmp_path, "kill", options)
    assert total > 100
    published = 0
    for at in [*range(1, total - 12, step), *range(total - 12, total + 1, 3)]:
        code, _, _ = run_trial(processes, tmp_path, whole, place, options, at, "kill")
        assert code == -signal.SIGKILL
        if left(place):  # killed while it cleaned up behind itself
            assert at > total - 12
            published += 1
        else:
            record = work_path(place) / "record.json"
            finished = [
                name
                for name in (json.loads(record.read_text())["files"] if record.exists() else ())
                if not name.endswith((".json", ".jinja"))  # small ones are written anew
            ]
            files = {name: (work_path(place) / "bundle" / name).stat().st_ino for name in finished}
            export(whole, place, resume=True, **options)
            assert options or {name: (place / name).stat().st_ino for name in files} == files
        check_published(place, expected)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.rmtree(work_path(place), ignore_errors=True)
    assert published < 6


def check_published(place: Path, expected: dict[str, bytes]) -> None:
    with Bundle.open(place) as bundle:
        assert bundle.digest == hashlib.sha256(expected[MANIFEST_NAME]).hexdigest()
        assert all(bytes(bundle.read(name)) == expected[name] for name in bundle.manifest.files)
    if place.is_dir():
        assert contents(place) == expected


def test_killed_while_replacing(
    processes: Any, whole: Path, tmp_path: Path, place: Path, expected: dict[str, bytes]
) -> None:
    """At every moment of the end there is a whole bundle under the name: the old one, or the new one."""
    old = tiny.write(tmp_path / "old", seed=2)
    total = moments(processes, whole, tmp_path, "kill", {"overwrite": True})
    seen = set()
    for at in [total // 2, *range(total - 14, total + 1, 3)]:
        shutil.rmtree(place.parent)
        place.parent.mkdir()
        export(old, place, name="old")
        before = contents(place)
        run_trial(processes, tmp_path, whole, place, {"overwrite": True}, at, "kill")
        assert left(place) == ["out.bundle"]
        is_old = contents(place) == before
        seen.add(is_old)
        assert is_old or contents(place) == expected
        export(whole, place, overwrite=True, resume=True)
        assert contents(place) == expected
        assert [p.name for p in place.parent.iterdir()] == ["out.bundle"]
    assert seen == {True, False}


def test_out_of_disk_at_any_moment(
    processes: Any, whole: Path, tmp_path: Path, place: Path, expected: dict[str, bytes]
) -> None:
    """Making a file or a folder, renaming: each may be what the disk refuses. One after the other in one folder, as
    someone would meet them who frees too little space each time."""
    total = moments(processes, whole, tmp_path, "full", {})
    assert total > 30
    for at in range(1, total + 1, 3):
        code, outcome, _ = run_trial(processes, tmp_path, whole, place, {"resume": True}, at, "full")
        assert code == 0
        if outcome == "done":  # less was left to do than that
            break
        assert outcome.startswith("ExportError: the disk is full while writing"), outcome
        assert left(place) == []
    assert at > 10
    if outcome != "done":
        export(whole, place, resume=True)
    check_published(place, expected)


def test_a_file_that_cannot_grow(
    processes: Any, whole: Path, tmp_path: Path, place: Path, expected: dict[str, bytes]
) -> None:
    """Writing stops in the middle of a file, wherever that is."""
    sizes = sorted({len(data) for data in expected.values()})
    for limit in (0, 100, *(size - 1 for size in sizes)):
        code, outcome, _ = run_trial(processes, tmp_path, whole, place, {"resume": True}, limit, "limit")
        assert code == 0
        assert outcome.startswith("ExportError: cannot write"), (limit, outcome)
        assert left(place) == []
    export(whole, place, resume=True)
    assert contents(place) == expected


# -- resuming


def interrupted(checkpoint: Path, output: Path, at: str = "speech_head", **options: Any) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == f"writing {at}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, None, output, ExportOptions(**options), progress=stop)


def written_by_resuming(checkpoint: Path, output: Path, **options: Any) -> list[str]:
    """Names of the data files that were written, with the graphs that use them."""
    written: list[str] = []

    def save(graphs: Any, data_path: Path, page: int) -> int:
        written.append(data_path.stem)
        return save_together(graphs, data_path, page)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "save_together", save)
        export(checkpoint, output, resume=True, **options)
    return written


def test_a_source_that_changed_starts_over(checkpoint: Path, place: Path) -> None:
    for change in (
        lambda: (checkpoint / "model.safetensors").touch(),
        lambda: (checkpoint / "chat_template.json").write_text("{}"),
        lambda: (checkpoint / "chat_template.json").unlink(),
        lambda: tiny.edit_json(checkpoint / "generation_config.json", lambda g: g.update(max_new_tokens=7)),
    ):
        interrupted(checkpoint, place)
        change()
        assert written_by_resuming(checkpoint, place) == list(DATA)
        shutil.rmtree(place)


def test_what_an_export_does_not_read_may_change(checkpoint: Path, place: Path) -> None:
    interrupted(checkpoint, place)
    (checkpoint / "README.md").write_text("new")
    (checkpoint / "export.log").write_text("new")
    assert written_by_resuming(checkpoint, place) == ["speech_head"]


def test_a_source_that_changes_on_the_way(checkpoint: Path, place: Path) -> None:
    """What was read first and what was read last would not belong together."""

    def touch(what: str, done: int, total: int) -> None:
        if what == "writing speech_head":
            (checkpoint / "model.safetensors").touch()

    with pytest.raises(ExportError, match="a source file was changed while it was exported: run the export again"):
        export_bundle(checkpoint, None, place, progress=touch)
    assert left(place) == []
    assert written_by_resuming(checkpoint, place) == list(DATA)


def test_without_resume_an_export_starts_over(whole: Path, place: Path, expected: dict[str, bytes]) -> None:
    interrupted(whole, place)
    mark = work_path(place) / "bundle" / "backbone.bin"
    mark.write_bytes(b"x" * mark.stat().st_size)
    export(whole, place)
    assert contents(place) == expected


def test_a_finished_file_that_was_spoiled_is_written_again(
    whole: Path, place: Path, expected: dict[str, bytes]
) -> None:
    interrupted(whole, place)
    mark = work_path(place) / "bundle" / "backbone.bin"
    data = bytearray(mark.read_bytes())
    data[50] ^= 1
    mark.write_bytes(data)
    assert written_by_resuming(whole, place) == ["backbone", "speech_head"]
    assert contents(place) == expected


def test_name_form_and_notes_may_change_on_the_way(whole: Path, place: Path, expected: dict[str, bytes]) -> None:
    interrupted(whole, place)
    assert written_by_resuming(whole, place, name="other", one_file=True) == ["speech_head"]
    with Bundle.open(place) as bundle:
        assert bundle.name == "other"
        assert bundle.read("backbone.bin") == expected["backbone.bin"]


def test_the_same_source_by_another_path(checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(checkpoint, place)
    monkeypatch.chdir(checkpoint.parent)
    assert written_by_resuming(Path("checkpoint"), place) == ["speech_head"]


# -- memory


def peak_of_writing(checkpoint: Path, output: Path, **options: Any) -> int:
    """Bytes at most while graphs are written, above what was there before; the self-test's run is not counted."""
    peaks: list[int] = []

    def stop(*_: Any) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_check_written", stop)
        patch.setattr("edge_sdk.export.bundle_writer.BundleWriter.publish", lambda self, one_file: self.output)
        tracemalloc.start()
        export(checkpoint, output, **options)
    return peaks[0]


SLACK = 3_000_000  # the tokenizer, the graphs, blocks of 4 MB that are hashed or scanned are less


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_large_tensor_at_a_time(tmp_path: Path, dtype: str) -> None:
    """The text tables, 16 MB each, are the largest there is; never two of them."""
    text = dataclasses.replace(tiny.SPEC.text, hidden=64)
    checkpoint = tiny.write(tmp_path / "c", text=text, vocab_size=65_536, dtype=dtype)
    peak = peak_of_writing(checkpoint, tmp_path / "x.bundle")
    assert 16 << 20 <= peak < (16 << 20) + SLACK + (4 << 20)


def test_a_fold_holds_its_source_and_what_it_writes(tmp_path: Path) -> None:
    text = dataclasses.replace(tiny.SPEC.text, hidden=64)
    checkpoint = tiny.write(tmp_path / "c", text=text, speech=SpeechIdSpec.after(65_532))
    assert peak_of_writing(checkpoint, tmp_path / "x.bundle") < 2 * (16 << 20) + SLACK + (4 << 20)


def test_experts_are_gathered_one_by_one(tmp_path: Path) -> None:
    moe = MoESpec(experts=64, experts_per_token=2, intermediate=256)
    text = dataclasses.replace(tiny.SPEC.text, hidden=128, layers=1, moe=moe)
    checkpoint = tiny.write(tmp_path / "c", text=text)
    largest = 64 * 2 * 256 * 128 * 4
    assert peak_of_writing(checkpoint, tmp_path / "x.bundle") < largest + SLACK + (4 << 20)


def test_files_are_closed_after_an_export(whole: Path, tmp_path: Path) -> None:
    export(whole, tmp_path / "x.bundle")
    assert str(whole) not in Path("/proc/self/maps").read_text()
    descriptors = [p for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
    assert not [p for p in descriptors if os.path.realpath(p).startswith((str(tmp_path), str(whole)))]


def test_weights_of_the_bundle_are_the_checkpoints(whole: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Unfolded weights are stored as they were; by name, in each graph's data file."""
    (tmp_path / "b").mkdir()
    for name in ("backbone.onnx", "backbone.bin"):
        (tmp_path / "b" / name).write_bytes(expected[name])
    stored = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(str(tmp_path / "b" / "backbone.onnx")).graph.initializer
    }
    checkpoint = Checkpoint(whole)
    names = [name for name in stored if name in checkpoint]
    assert len(names) == 2 + 1 + 2 * 11
    for name in names:
        assert np.array_equal(stored[name], checkpoint.read(name))


def test_smaller_pages_save_space(checkpoint: Path, place: Path) -> None:
    with pytest.raises(ExportError, match="page must be one of 4096, 65536, found 512"):
        export(checkpoint, place, page=512)
    assert export(checkpoint, place, page=4096).exists()
