"""Files written whole: what stood there before stays until the new content is complete."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from edge_sdk.errors import Error


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step. A link's target is written, a device or a pipe is written to, never replaced.

    Raises OSError.
    """
    if path.exists() and not path.is_file():  # asked before links are followed: /dev/stdout may lead to no name at all
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_place(path: Path, error: type[Error] = Error) -> None:
    """Raise `error` if it can be seen beforehand that `write_file` will fail there."""
    if path.is_dir():
        raise error(f"cannot write '{path}': it is a directory")
    folder = Path(os.path.realpath(path)).parent
    special = path.exists() and not path.is_file()
    if not special and not folder.is_dir():
        raise error(f"cannot write '{path}': there is no directory '{folder}'")
    if not os.access(path if special else folder, os.W_OK):
        raise error(f"cannot write '{path}': permission denied")
