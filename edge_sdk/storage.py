"""Where a bundle's files lie: a directory, or one zip file stored without compression. Both are read by mapping.

Names inside a bundle are relative POSIX paths. Anything that could reach outside (an absolute path, "..", a link
that leaves the directory) is refused here, so that no other file needs to think about it.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from edge_sdk.errors import BundleError

_EMPTY = memoryview(b"")
# What the zipfile module raises for one kind of damage or another.
_ZIP_DAMAGE = (zipfile.BadZipFile, ValueError, OverflowError, EOFError, NotImplementedError, struct.error)
_NO_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and halves that no file system takes


def check_name(name: str, where: str) -> str:
    """Return `name` if it is a plain relative POSIX path, else raise BundleError."""
    parts = PurePosixPath(name).parts
    if (
        not name
        or name.startswith("/")
        or "\\" in name
        or ":" in name
        or ".." in parts
        or "/".join(parts) != name
        or _NO_NAME.search(name)
    ):
        raise BundleError(f"bundle '{where}' names the file {name!r}, which is not a plain path inside the bundle")
    return name


class Storage(Protocol):
    """Read access to a bundle's files."""

    path: Path

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if there is none."""

    def map(self, name: str) -> memoryview:
        """The file's bytes, mapped read-only and shared between processes."""

    def stamp(self, name: str) -> list[int]:
        """Numbers that change when the file was replaced or written to; the last is when that was, in ns."""

    def close(self) -> None:
        """Hold the mappings no longer; what was handed out stays valid."""


class DirectoryStorage:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def _locate(self, name: str) -> Path:
        found = Path(os.path.realpath(self._root / check_name(name, str(self.path))))  # never fails, unlike resolve
        if not found.is_relative_to(self._root):
            raise BundleError(f"bundle '{self.path}': '{name}' is a link that leaves the bundle")
        return found

    def size(self, name: str) -> int | None:
        try:
            status = self._locate(name).stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def map(self, name: str) -> memoryview:
        try:
            with self._locate(name).open("rb") as file:
                return map_file(file.fileno())
        except OSError as e:
            raise BundleError(f"bundle '{self.path}': cannot read '{name}': {e.strerror or e}") from e

    def stamp(self, name: str) -> list[int]:
        return _stamp(self._locate(name).stat())

    def close(self) -> None:
        """Nothing is held here: each file is mapped when it is asked for."""


class ZipStorage:
    """A zip whose members are stored, not compressed, so that each is a slice of one mapping."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._stamp = _stamp(os.fstat(file.fileno()))
                self._data = map_file(file.fileno())
                with zipfile.ZipFile(file) as archive:
                    self._members = self._index(archive.infolist(), archive.start_dir)
        except OSError as e:
            raise BundleError(f"cannot read the bundle '{path}': {e.strerror or e}") from e
        except _ZIP_DAMAGE as e:
            raise BundleError(
                f"bundle '{path}' is neither a directory nor a readable zip file ({e}). Copy or export it again"
            ) from e

    def _index(self, infos: list[zipfile.ZipInfo], limit: int) -> dict[str, memoryview]:
        """Names to slices of the mapping. `limit`: where the members end and the directory begins."""
        members: dict[str, memoryview] = {}
        at = 0
        for info in sorted(infos, key=lambda i: i.header_offset):
            # The header before the data repeats name and extra field, at lengths of its own.
            head = bytes(self._data[max(info.header_offset, 0) :][:30])
            if len(head) < 30 or head[:4] != b"PK\x03\x04":
                raise BundleError(f"bundle '{self.path}': the entry of {info.filename!r} is damaged")
            if info.header_offset < at:
                raise BundleError(f"bundle '{self.path}': {info.filename!r} overlaps the entry before it")
            begin = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
            at = begin + info.compress_size
            if at > limit:
                raise BundleError(f"bundle '{self.path}': {info.filename!r} reaches past the end of the members")
            if info.filename.endswith("/"):
                continue
            name = check_name(info.filename, str(self.path))
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
                raise BundleError(f"bundle '{self.path}': '{name}' is compressed or encrypted; store it plainly")
            if name in members:
                raise BundleError(f"bundle '{self.path}' holds '{name}' twice")
            members[name] = self._data[begin:at]
        return members

    def size(self, name: str) -> int | None:
        member = self._members.get(name)
        return None if member is None else len(member)

    def map(self, name: str) -> memoryview:
        if name not in self._members:
            raise BundleError(f"bundle '{self.path}' has no file '{name}'")
        return self._members[name]

    def stamp(self, name: str) -> list[int]:
        return self._stamp

    def close(self) -> None:
        self._members = {}
        self._data = _EMPTY


def open_storage(path: str | os.PathLike[str]) -> Storage:
    found = Path(path)
    try:
        if found.is_dir():
            return DirectoryStorage(found)
        if found.is_file():
            return ZipStorage(found)
    except OSError as e:
        raise BundleError(f"cannot read the bundle '{found}': {e.strerror or e}") from e
    raise BundleError(f"there is no bundle at '{found}'; export one with `edge-sdk export`, or check the path")


def map_file(fileno: int) -> memoryview:
    """Map a whole file read-only. An empty file gives empty bytes."""
    if os.fstat(fileno).st_size == 0:
        return _EMPTY
    return memoryview(mmap.mmap(fileno, 0, access=mmap.ACCESS_READ))


def _stamp(status: os.stat_result) -> list[int]:
    # The change time too: unlike the modification time, no program can set it back.
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
