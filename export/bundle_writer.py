"""Writes a bundle under a temporary name and renames it: a killed or failed export leaves no half bundle.

Beside the output stands `<output>.partial` while an export runs: the bundle as far as it goes, and a record of what was
finished, so that `--resume` takes up where the last run stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from edge_sdk.errors import BundleError, ExportError
from edge_sdk.manifest import FORMAT, MANIFEST_NAME, FileEntry, Manifest, manifest_bytes
from edge_sdk.storage import open_storage

# What may lie in `<output>.partial`; with anything else in it, it is not ours to delete.
_RECORD, _NEW_RECORD, _BUNDLE, _PACKED, _OLD = "record.json", "record.json.new", "bundle", "packed", "old"
_BLOCK = 1 << 22
_PAGE = 4096
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20  # bytes, of the zip format
_PADDING_ID = 0xD935  # the extra field that alignment tools use
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # zip entries carry no clock: the same export gives the same bytes
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def check_output(output: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The path of a bundle to write, if it may be written there.

    Raises:
        ExportError: something is there already that must not, or that no bundle should, replace.
    """
    path = Path(output)
    if path.name in ("", ".."):
        raise ExportError(f"'{output}' cannot be a bundle's name; give the path of a file or directory to make")
    with disk_errors(path):
        if not os.path.lexists(path):
            return path
        if not overwrite:
            raise ExportError(f"'{path}' exists already; choose another name, remove it, or give --overwrite")
        if not _is_bundle(path) and not (path.is_dir() and not any(path.iterdir())):
            raise ExportError(f"'{path}' exists and is not a bundle, so it is not overwritten; choose another name")
    return path


class BundleWriter:
    """Collects files in `<output>.partial`, then publishes them as `<output>` in one rename.

    Holds a lock on it until `close`, which `publish` does too: two exports never write to one output.
    """

    def __init__(self, output: str | os.PathLike[str], fingerprint: str, *, resume: bool, overwrite: bool) -> None:
        self.output = check_output(output, overwrite=overwrite)
        self._work = work_path(self.output)
        self.partial = self._work / _BUNDLE
        self.files: dict[str, FileEntry] = {}
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._lock = -1
        with disk_errors(self._work):
            self._claim()
            try:
                self._start(resume)
            except BaseException:
                self.close()
                raise

    def _claim(self) -> None:
        """Take the work directory, or say whose it is."""
        self._work.mkdir(parents=True, exist_ok=True)
        strange = {p.name for p in self._work.iterdir()} - {_RECORD, _NEW_RECORD, _BUNDLE, _PACKED, _OLD}
        if strange:
            raise ExportError(
                f"'{self._work}' is needed for what is not finished, but holds something else "
                f"({', '.join(sorted(strange)[:3])}); move it away"
            )
        self._lock = os.open(self._work, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            self.close()
            raise ExportError(f"another run is writing to '{self._work}'; wait for it, or end it") from e
        except OSError:
            pass  # a file system without locks

    def _start(self, resume: bool) -> None:
        old = self._work / _OLD
        if os.path.lexists(old) and not os.path.lexists(self.output):
            old.rename(self.output)  # a run was killed between the two renames of `_replace`
            check_output(self.output, overwrite=self._overwrite)
        record = _read_record(self._work / _RECORD)
        if resume and record.get("fingerprint") == self._fingerprint:
            self.files = {n: e for n, e in _recorded_files(record).items() if _is_intact(self.partial / n, e)}
        else:
            for path in self._work.iterdir():
                _remove(path)
        self.partial.mkdir(exist_ok=True)
        self._save_record()

    def has(self, *names: str) -> bool:
        """Whether a run before this one finished these files."""
        return all(name in self.files for name in names)

    def path(self, name: str) -> Path:
        target = self.partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write(self, name: str, data: bytes) -> None:
        with disk_errors(self._work):
            self.path(name).write_bytes(data)
            self.finish(name)

    def finish(self, *names: str) -> None:
        """Hash files that were written to `path(name)`, force them to the disk and record them as done."""
        with disk_errors(self._work):
            for name in names:
                self.files[name] = _seal(self.partial / name)
            self._save_record()

    def write_manifest(self, manifest: Manifest) -> None:
        with disk_errors(self._work):
            path = self.partial / MANIFEST_NAME
            path.write_bytes(manifest_bytes(manifest))
            _force_to_disk(path)

    def publish(self, *, one_file: bool) -> Path:
        """Rename to the final name; as one file, pack first (stored, large members on page borders)."""
        with disk_errors(self._work):
            finished = self.partial
            for path in (finished, *finished.rglob("*")):
                if path.is_dir():
                    _force_to_disk(path)
                elif path.relative_to(finished).as_posix() not in {*self.files, MANIFEST_NAME}:
                    path.unlink()
            if one_file:
                finished = self._work / _PACKED
                pack(self.partial, finished)
                _force_to_disk(finished)
            _replace(finished, self.output, self._work / _OLD)
            _force_to_disk(self.output.parent)
            shutil.rmtree(self._work, ignore_errors=True)
        self.close()
        return self.output

    def close(self) -> None:
        """Let another export have the work directory. What is in it stays, for `--resume`."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _save_record(self) -> None:
        value = {"fingerprint": self._fingerprint, "files": {n: e.to_json() for n, e in self.files.items()}}
        temporary = self._work / _NEW_RECORD
        temporary.write_text(json.dumps(value))
        temporary.replace(self._work / _RECORD)


def work_path(output: Path) -> Path:
    """Where an export to `output` keeps what is not finished."""
    return output.with_name(output.name + ".partial")


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what an operating system says about a full or read-only disk into an error that says what to do."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(
                f"the disk is full while writing '{where}': free some space and run again with --resume"
            ) from e
        raise ExportError(f"cannot write '{where}': {e.strerror or e}") from e


def pack(directory: Path, target: Path) -> None:
    """A bundle directory -> one zip, stored without compression, large members aligned so that they can be mapped."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    names.sort(key=lambda n: n != MANIFEST_NAME)
    with target.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.external_attr = 0o644 << 16
            info.file_size = (directory / name).stat().st_size
            info.extra = _padding(file.tell(), info)
            with archive.open(info, "w") as member, (directory / name).open("rb") as source:
                shutil.copyfileobj(source, member, _BLOCK)


def _padding(at: int, info: zipfile.ZipInfo) -> bytes:
    """An extra field that puts a large member's data on a page border and a small one's on a cache line."""
    align = _PAGE if info.file_size >= _PAGE else 64
    zip64 = _ZIP64_EXTRA if info.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0  # the rule of the zipfile module
    begin = at + _LOCAL_HEADER + len(info.filename.encode()) + zip64 + 4
    fill = -begin % align
    return _PADDING_ID.to_bytes(2, "little") + fill.to_bytes(2, "little") + bytes(fill)


def _seal(path: Path) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
        os.fsync(file.fileno())
    return FileEntry(digest.hexdigest(), size)


def _read_record(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def _recorded_files(record: dict[str, Any]) -> dict[str, FileEntry]:
    try:
        return {name: FileEntry.from_json(entry) for name, entry in record["files"].items()}
    except (BundleError, AttributeError, KeyError):
        return {}  # not a record of ours: nothing counts as finished


def _is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a recorded file still is what was recorded: another bundle's file may have come to lie in its place."""
    try:
        return path.stat().st_size == entry.size and _seal(path) == entry
    except OSError:
        return False


def _is_bundle(path: Path) -> bool:
    try:
        return FORMAT.encode() in bytes(open_storage(path).map(MANIFEST_NAME))
    except BundleError:
        return False


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace(new: Path, target: Path, old: Path) -> None:
    """Give `new` the name of `target` in one step. What bore it lies at `new` or `old` afterwards."""
    if not os.path.lexists(target) or (new.is_file() and target.is_file()):
        new.replace(target)
    elif not _exchange(new, target):
        target.rename(old)  # no such call here: for a moment there is nothing under the name
        new.rename(target)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names, whatever they are. False where the system or the file system cannot."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is None:
        return False
    return bool(function(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)
