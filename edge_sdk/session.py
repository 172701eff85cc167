"""Saved conversations: turns as JSON, encoder rows as arrays, in one file that is read as if an enemy had written it.

The caches are not saved: they are recomputed from the rows at the next turn, which gives the same tokens, and a session
file stays small (a 6 s question is 30 rows).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.checks import check_number, check_path, check_text
from edge_sdk.conversation import ROLES, Turn
from edge_sdk.errors import BundleError, Error
from edge_sdk.events import ToolCall
from edge_sdk.files import write_file
from edge_sdk.prompt import Clip
from edge_sdk.tensorfile import TensorFile, write_tensors

FORMAT, FORMAT_VERSION = "edge_sdk.session", 1


@dataclass(frozen=True)
class Session:
    turns: list[Turn]
    generations: int
    options: dict[str, Any]


def save_session(
    path: str | os.PathLike[str],
    bundle: Bundle,
    turns: Sequence[Turn],
    *,
    generations: int,
    options: Mapping[str, Any],
) -> None:
    """Write a session file, complete or not at all."""
    target = check_path("the session's file", path)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "bundle": bundle.digest,
        "bundle_name": bundle.name,
        "generations": generations,
        "options": dict(options),
        "turns": [_turn_to_json(turn) for turn in turns],
    }
    arrays = {f"clip.{n}": turn.clip.rows for n, turn in enumerate(turns) if turn.clip}
    text, content = json.dumps(header), io.BytesIO()
    write_tensors(content, arrays, {"session": text, "sha256": checksum(text, arrays)})
    try:
        write_file(target, content.getvalue())
    except OSError as e:
        raise Error(f"cannot write the session '{target}': {e.strerror or e}") from e


def checksum(header: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Of a session's header and audio rows. It finds damage: who changes a file on purpose can change it too."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def load_session(path: str | os.PathLike[str], bundle: Bundle) -> Session:
    """Read and check a session file against the bundle it is to be used with."""
    file = TensorFile(check_path("the session's file", path))
    try:
        where = f"session '{path}'"
        header = _header(file, where)
        if file.metadata.get("sha256") != checksum(file.metadata["session"], {n: file.read(n) for n in file}):
            raise Error(f"{where} is damaged (its checksum differs): what it held cannot be trusted any more")
        if header.get("bundle") != bundle.digest:
            raise BundleError(
                f"{where} was saved with bundle '{header.get('bundle_name')}' ({str(header.get('bundle'))[:12]}), "
                f"this is '{bundle.name}' ({bundle.digest[:12]}): open it with that bundle"
            )
        options, generations, turns = header.get("options"), header.get("generations"), header.get("turns")
        if not isinstance(options, dict) or not set(options) <= {"system", "speech"}:
            raise Error(f"{where} is damaged: its options are {options!r}")
        if not isinstance(options.get("speech"), bool) or not isinstance(options.get("system"), (str, type(None))):
            raise Error(f"{where} is damaged: its options are {options!r}")
        if not isinstance(generations, int) or isinstance(generations, bool) or not 0 <= generations < 2**32:
            raise Error(f"{where} is damaged: its generation count is {generations!r}")
        if not isinstance(turns, list):
            raise Error(f"{where} is damaged: it has no list of turns")
        hidden = bundle.manifest.model.backbone.hidden_size if bundle.manifest.model else 0
        read = [_turn_from_json(turn, file, f"clip.{n}", hidden, f"{where}, turn {n}") for n, turn in enumerate(turns)]
        return Session(read, generations, options)
    finally:
        file.close()


def _header(file: TensorFile, where: str) -> dict[str, Any]:
    try:
        header = json.loads(file.metadata.get("session", ""))
        check_text(f"the header of {where}", json.dumps(header, ensure_ascii=False))
    except (ValueError, RecursionError) as e:
        raise Error(f"{where} is not a saved session") from e
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise Error(f"{where} is not a saved session")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise Error(f"{where} has format version {version!r}, this edge_sdk reads {FORMAT_VERSION}: update edge_sdk")
    return header


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    said = [part if isinstance(part, str) else dataclasses.asdict(part) for part in turn.said]
    return {
        "role": turn.role,
        "text": turn.text,
        "said": said,
        "clip_s": turn.clip.seconds if turn.clip else None,
    }


def _turn_from_json(value: Any, file: TensorFile, clip_name: str, hidden: int, where: str) -> Turn:
    if not isinstance(value, dict) or set(value) != {"role", "text", "said", "clip_s"}:
        raise Error(f"{where} is malformed")
    role, text, said, seconds = value["role"], value["text"], value["said"], value["clip_s"]
    if role not in ROLES or not isinstance(text, str) or not isinstance(said, list):
        raise Error(f"{where} is malformed")
    clip = None
    if seconds is not None:
        if role != "user":
            raise Error(f"{where} is malformed: its clip")
        seconds = check_number(f"{where} is malformed: clip_s", seconds, 0.0, want="a number of seconds")
        clip = Clip.of(_rows(file, clip_name, hidden, where), seconds)
    return Turn(role, text, clip, tuple(_said_from_json(part, where) for part in said))


def _said_from_json(value: Any, where: str) -> str | ToolCall:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, dict)
        and set(value) == {"id", "name", "arguments", "raw"}
        and all(isinstance(value[k], str) for k in ("id", "name", "raw"))
        and isinstance(value["arguments"], dict)
    ):
        return ToolCall(**value)
    raise Error(f"{where} is malformed: a tool call")


def _rows(file: TensorFile, name: str, hidden: int, where: str) -> np.ndarray[Any, Any]:
    entry = file.entries.get(name)
    if entry is None or entry.dtype != "F32" or len(entry.shape) != 2 or entry.shape[1] != hidden:
        raise Error(f"{where} is malformed: its audio rows must be F32 [n, {hidden}]")
    rows = file.read(name)
    if not np.isfinite(rows).all():
        raise Error(f"{where} is malformed: its audio rows are not finite")
    return rows
