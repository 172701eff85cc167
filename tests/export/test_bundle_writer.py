"""Writing a bundle: nothing under its name until it is complete, nothing of others' destroyed, resumed where it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ExportError
from edge_sdk.export import bundle_writer
from edge_sdk.export.bundle_writer import BundleWriter, check_output, disk_errors, pack, work_path
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, MANIFEST_NAME, FileEntry, Manifest
from edge_sdk.storage import ZipStorage

FILES = {"a.bin": b"a" * 70_000, "voices/b.npy": b"b", "c.json": b""}


def start(output: Path, fingerprint: str = "one", *, resume: bool = False, overwrite: bool = False) -> BundleWriter:
    return BundleWriter(output, fingerprint, resume=resume, overwrite=overwrite)


def manifest(writer: BundleWriter, name: str = "test") -> Manifest:
    return Manifest(FORMAT, FORMAT_VERSION, name, model=None, vocoder=None, graphs={}, files=writer.files)


def write(output: Path, name: str = "test", *, one_file: bool = False, **how: Any) -> Path:
    with start(output, **how) as writer:
        for file, data in FILES.items():
            if not writer.has(file):
                writer.write(file, data + (name.encode() if file == "a.bin" else b""))
        writer.write_manifest(manifest(writer, name))
        return writer.publish(one_file=one_file)


def name_of(path: Path) -> str:
    with Bundle.open(path) as bundle:
        assert bundle.read("a.bin") == FILES["a.bin"] + bundle.name.encode()
        return bundle.name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "test.bundle"


# -- what is written


@pytest.mark.parametrize("one_file", [False, True])
def test_a_bundle_and_nothing_else_is_left(output: Path, one_file: bool) -> None:
    assert write(output, one_file=one_file) == output
    assert [p.name for p in output.parent.iterdir()] == ["test.bundle"]
    assert output.is_file() == one_file
    assert name_of(output) == "test"
    if not one_file:
        names = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
        assert names == {*FILES, MANIFEST_NAME}


def test_nothing_stands_under_the_name_before_it_is_published(output: Path) -> None:
    with start(output) as writer:
        writer.write("a.bin", b"x")
        writer.write_manifest(manifest(writer))
        assert not os.path.lexists(output)
        assert (work_path(output) / "bundle" / "a.bin").exists()
    assert not os.path.lexists(output)


def test_files_that_were_not_recorded_are_not_published(output: Path) -> None:
    with start(output) as writer:
        writer.write("a.bin", b"x")
        writer.path("half.bin").write_bytes(b"from a run that was killed")
        writer.path("sub/half.bin").write_bytes(b"x")
        writer.write_manifest(manifest(writer))
        writer.publish(one_file=False)
    assert {p.name for p in output.rglob("*") if p.is_file()} == {"a.bin", MANIFEST_NAME}


def test_a_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path("x.bundle")) == Path("x.bundle")
    assert name_of(tmp_path / "x.bundle") == "test"


# -- where it may be written


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/.."])
def test_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="cannot be a bundle's name"):
        check_output(name, overwrite=True)


def test_what_exists_is_kept_unless_told_otherwise(output: Path) -> None:
    write(output, "old")
    with pytest.raises(ExportError, match=r"exists already; choose another name, remove it, or give --overwrite"):
        start(output)
    assert name_of(output) == "old"
    assert not work_path(output).exists()


def things(folder: Path) -> dict[str, Path]:
    """What a slip of the finger may name as the output."""
    made = {name: folder / name for name in ("text", "zip", "folder", "checkpoint", "dangling")}
    made["text"].write_text("my thesis")
    with zipfile.ZipFile(made["zip"], "w") as archive:
        archive.writestr("photo.jpg", b"x")
    (made["folder"] / "sub").mkdir(parents=True)
    (made["folder"] / "sub" / "photo.jpg").write_text("x")
    made["checkpoint"].mkdir()
    (made["checkpoint"] / "config.json").write_text("{}")
    (made["checkpoint"] / MANIFEST_NAME).write_text('{"format": "something else"}')
    made["dangling"].symlink_to("gone")
    return made


def test_overwrite_replaces_bundles_alone(tmp_path: Path) -> None:
    for path in things(tmp_path).values():
        before = sorted(p.name for p in path.rglob("*")) if path.is_dir() else None
        with pytest.raises(ExportError, match="exists and is not a bundle, so it is not overwritten"):
            start(path, overwrite=True)
        assert os.path.lexists(path)
        assert before is None or before == sorted(p.name for p in path.rglob("*"))


def test_an_empty_folder_may_be_filled(output: Path) -> None:
    output.mkdir(parents=True)
    with pytest.raises(ExportError, match="exists already"):
        start(output)
    write(output, overwrite=True)
    assert name_of(output) == "test"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_folder_and_a_file_replace_each_other(
    output: Path, monkeypatch: pytest.MonkeyPatch, before: bool, after: bool, exchange: bool
) -> None:
    """In one step where the system can swap two names, else in two."""
    if not exchange:
        monkeypatch.setattr(bundle_writer, "_exchange", lambda a, b: False)
    write(output, "old", one_file=before)
    write(output, "new", one_file=after, overwrite=True)
    assert name_of(output) == "new"
    assert output.is_file() == after
    assert [p.name for p in output.parent.iterdir()] == ["test.bundle"]


def test_the_old_bundle_is_whole_until_the_new_one_is(output: Path) -> None:
    write(output, "old")
    with start(output, overwrite=True) as writer:
        for file, data in FILES.items():
            writer.write(file, data + b"new" * (file == "a.bin"))
            assert name_of(output) == "old"
        writer.write_manifest(manifest(writer, "new"))
        assert name_of(output) == "old"
        writer.publish(one_file=False)
    assert name_of(output) == "new"


def test_there_is_always_something_under_the_name(output: Path) -> None:
    """Watched from outside while two bundles replace each other."""
    write(output, "old")
    program = (
        "import os, sys, time\n"
        "missed = 0\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    missed += not os.path.exists(sys.argv[1] + '/manifest.json')\n"
        "print(missed)\n"
    )
    done = output.parent / "done"
    watcher = subprocess.Popen([sys.executable, "-c", program, output, done], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout
    watcher.stdout.readline()
    for n in range(40):
        write(output, f"new{n}", overwrite=True)
    done.touch()
    assert watcher.communicate(timeout=30)[0].strip() == "0"


def test_a_link_to_a_bundle_is_replaced_not_followed(output: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "target.bundle", "target")
    output.parent.mkdir(parents=True)
    output.symlink_to(target)
    write(output, "new", overwrite=True)
    assert not output.is_symlink()
    assert (name_of(output), name_of(target)) == ("new", "target")


def test_other_peoples_files_beside_the_output(output: Path) -> None:
    """A folder that happens to have the name of our work directory is not touched."""
    work_path(output).mkdir(parents=True)
    (work_path(output) / "photo.jpg").write_text("x")
    for resume in (False, True):
        with pytest.raises(ExportError, match=r"holds something else \(photo\.jpg\); move it away"):
            start(output, resume=resume)
    assert (work_path(output) / "photo.jpg").exists()
    shutil.rmtree(work_path(output))
    work_path(output).write_text("a file")
    with pytest.raises(ExportError, match=r"cannot write '.*\.partial': File exists"):
        start(output)


def test_two_exports_to_one_output(output: Path) -> None:
    with start(output) as first:
        first.write("a.bin", b"x")
        for resume in (False, True):
            with pytest.raises(ExportError, match="another run is writing to"):
                start(output, resume=resume)
        assert (work_path(output) / "bundle" / "a.bin").exists()
    with start(output, resume=True) as second:
        assert second.has("a.bin")


def test_a_lock_ends_with_its_process(output: Path) -> None:
    program = (
        "import sys, os; from edge_sdk.export.bundle_writer import BundleWriter\n"
        "w = BundleWriter(sys.argv[1], 'one', resume=False, overwrite=False); w.write('a.bin', b'x')\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(ExportError, match="another run is writing to"):
        start(output, resume=True)
    process.kill()
    process.communicate()
    with start(output, resume=True) as writer:
        assert writer.has("a.bin")


def test_a_file_system_without_locks(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(bundle_writer.fcntl, "flock", flock)
    write(output)
    assert name_of(output) == "test"


# -- resuming


def test_resume_keeps_what_was_finished(output: Path) -> None:
    with start(output) as writer:
        writer.write("a.bin", FILES["a.bin"] + b"test")
        writer.path("voices/b.npy").write_bytes(b"half of i")
    with start(output, resume=True) as writer:
        assert writer.has("a.bin")
        assert not writer.has("voices/b.npy")
        assert not writer.has("a.bin", "voices/b.npy")
    write(output, resume=True)
    assert name_of(output) == "test"


@pytest.mark.parametrize("how", [{"resume": False}, {"resume": True, "fingerprint": "two"}])
def test_starting_over(output: Path, how: Any) -> None:
    with start(output) as writer:
        writer.write("a.bin", b"x")
    with start(output, **how) as writer:
        assert not writer.files
        assert not (work_path(output) / "bundle" / "a.bin").exists()


def test_a_finished_file_that_changed_is_written_again(output: Path) -> None:
    """The same size is not enough: the bundle that was overwritten may have come to lie where the new one did."""
    with start(output) as writer:
        for name in ("a", "b", "c", "d"):
            writer.write(name, b"1234")
    folder = work_path(output) / "bundle"
    (folder / "a").write_bytes(b"1235")
    (folder / "b").unlink()
    (folder / "c").write_bytes(b"12345")
    with start(output, resume=True) as writer:
        assert set(writer.files) == {"d"}


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"fingerprint": "one"}', b'{"fingerprint": "one", "files": []}',
     b'{"fingerprint": "one", "files": {"a": 3}}', b'{"fingerprint": "one", "files": {"a": {"sha256": 1, "size": 1}}}'],
)  # fmt: skip
def test_a_record_that_is_none(output: Path, record: bytes) -> None:
    with start(output) as writer:
        writer.write("a", b"1234")
    (work_path(output) / "record.json").write_bytes(record)
    with start(output, resume=True) as writer:
        assert not writer.files


def test_killed_between_the_two_renames(output: Path) -> None:
    """Where names cannot be swapped the old bundle steps aside for a moment: it is put back."""
    write(output, "old")
    work_path(output).mkdir()
    output.rename(work_path(output) / "old")
    with pytest.raises(ExportError, match="exists already"):
        start(output)
    assert name_of(output) == "old"
    output.rename(work_path(output) / "old")
    write(output, "new", overwrite=True)
    assert name_of(output) == "new"


def test_killed_after_publishing(output: Path) -> None:
    """The work directory is left: a later export of other weights takes nothing from it."""
    write(output, "old")
    work = work_path(output)
    work.mkdir()
    shutil.copytree(output, work / "bundle")
    with start(output, "two", overwrite=True) as writer:
        writer.write("a.bin", FILES["a.bin"] + b"new")
    entries = {n: FileEntry("0" * 64, (output / n).stat().st_size).to_json() for n in FILES}
    (work / "record.json").write_text(json.dumps({"fingerprint": "two", "files": entries}))
    with start(output, "two", resume=True, overwrite=True) as writer:
        assert not writer.files


# -- disks


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full while writing 'x.bundle': free some space and run again with --resume"),
        (errno.EDQUOT, "the disk is full while writing 'x.bundle'"),
        (errno.EROFS, "cannot write 'x.bundle': Read-only file system"),
        (errno.EACCES, "cannot write 'x.bundle': Permission denied"),
        (errno.EFBIG, "cannot write 'x.bundle': File too large"),
        (errno.EIO, "cannot write 'x.bundle': Input/output error"),
    ],
)
def test_what_an_operating_system_says(code: int, message: str) -> None:
    with pytest.raises(ExportError, match=message), disk_errors(Path("x.bundle")):
        raise OSError(code, os.strerror(code))


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "x.bundle", tmp_path / "file" / "deep" / "x.bundle", Path("/proc/x.bundle")):
        with pytest.raises(ExportError, match="cannot write"):
            start(path)
    for name in ("x" * 255, "x" * 300):
        with pytest.raises(ExportError, match="File name too long"):
            start(tmp_path / name)


# -- one file


def test_members_are_aligned_and_the_same_every_time(output: Path, tmp_path: Path) -> None:
    write(output)
    for n in (1, 2):
        pack(output, tmp_path / f"{n}.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST_NAME, "a.bin", "c.json", "voices/b.npy"]
    offsets = member_offsets(tmp_path / "1.zip")
    assert offsets["a.bin"] % 4096 == 0
    assert all(offset % 64 == 0 for offset in offsets.values())


def member_offsets(path: Path) -> dict[str, int]:
    storage, whole = ZipStorage(path), path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        out = {}
        for info in archive.infolist():
            name = int.from_bytes(whole[info.header_offset + 26 : info.header_offset + 28], "little")
            extra = int.from_bytes(whole[info.header_offset + 28 : info.header_offset + 30], "little")
            out[info.filename] = info.header_offset + 30 + name + extra
            data = storage.map(info.filename)
            assert bytes(data) == whole[out[info.filename] : out[info.filename] + len(data)]
    return out


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text("abé漢/", min_size=1, max_size=6).filter(lambda n: n.strip("/") == n and "//" not in n),
        st.sampled_from([0, 1, 63, 64, 4095, 4096, 4097, 10_000]),
        max_size=5,
    ),
    st.booleans(),
)
def test_any_files_are_packed_and_found(tmp_path_factory: pytest.TempPathFactory, sizes: Any, zip64: bool) -> None:
    """Also with the headers that files of more than 4 GB need."""
    folder = tmp_path_factory.mktemp("pack")
    written = {}
    for name, size in sizes.items():
        path = folder / "in" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([size % 251]) * size)
        except OSError:  # one name is the folder of another
            continue
        written[name] = path.read_bytes()
    (folder / "in").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if zip64:
            patch.setattr(zipfile, "ZIP64_LIMIT", 5000)
        pack(folder / "in", folder / "out.zip")
    storage = ZipStorage(folder / "out.zip")
    for name, data in written.items():
        assert bytes(storage.map(name)) == data
    for name, offset in member_offsets(folder / "out.zip").items():
        assert offset % (4096 if len(written[name]) >= 4096 else 64) == 0


def test_a_packed_file_has_ordinary_permissions(output: Path) -> None:
    write(output, one_file=True)
    with zipfile.ZipFile(output) as archive:
        assert {stat.S_IMODE(i.external_attr >> 16) for i in archive.infolist()} == {0o644}
