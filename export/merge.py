"""Merges two checkpoints of one architecture: `alpha * A + (1 - alpha) * B`, piece by piece, into a third.

Each value is computed in float32 (in float64 where A stores float64), with alpha and 1 - alpha rounded to it, then
rounded to A's dtype, to nearest and in a tie to even. Where A and B are equal the result is A's value, whatever alpha:
a part that was frozen in training comes out unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk import __version__
from edge_sdk.errors import CheckpointError, ExportError
from edge_sdk.export.bundle_writer import BundleWriter, disk_errors
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.merge_check import PIECE_VALUES, aliases, check_mergeable, counterpart
from edge_sdk.tensorfile import Entry, TensorFile, narrow_bfloat16, widen_bfloat16

RECORD = "merge.json"
_FORMAT, _FORMAT_VERSION = "edge_sdk.merge", 1
_TOKENIZER_FOLDER = "speech_tokenizer"
_KEPT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # of A's configuration and tokenizers
_KEPT_NAMES = ("LICENSE", "NOTICE")
_BLOCK = 1 << 22

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]  # what is done now, bytes done, bytes in all


@dataclass(frozen=True)
class MergeReport:
    """What was written. `other_dtypes`: tensors that B stores otherwise, by "B's dtype -> A's dtype"."""

    path: Path
    alpha: float
    tensors: int
    size_bytes: int
    other_dtypes: dict[str, int]


def merge_checkpoints(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    output: str | os.PathLike[str],
    alpha: float = 0.5,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Write `alpha * A + (1 - alpha) * B` to a new folder, with A's shards, dtypes, configuration and tokenizer.

    Args:
        resume: take up a merge of the same files and alpha that was interrupted, at the shard it was in.

    Raises:
        CheckpointError: the two do not fit, every difference named; a tensor is not finite.
        ExportError: alpha is no number from 0 to 1; the output exists, or cannot be written.
    """
    report = progress or (lambda what, done, total: None)
    if not 0.0 <= alpha <= 1.0:
        raise ExportError(f"alpha is {alpha}; give a number from 0 (all of B) to 1 (all of A)")
    _check_output(Path(output))
    try:
        with contextlib.closing(Checkpoint(a)) as first, contextlib.closing(Checkpoint(b)) as second:
            before = _states(first), _states(second)
            check_mergeable(first, second)
            _check_shard_names(first)
            record = _record(first, second, alpha, report)
            with BundleWriter(output, hashlib.sha256(record).hexdigest(), resume=resume, overwrite=False) as writer:
                _write(writer, first, second, alpha, report)
                writer.write(RECORD, record)
                if (_states(first), _states(second)) != before:
                    raise ExportError("a source file was changed while it was merged: run the merge again")
                size = sum(entry.size for entry in writer.files.values())
                path = writer.publish(one_file=False)
            return MergeReport(path, alpha, len(list(first)), size, _other_dtypes(first, second))
    except OSError as e:  # of a source: what the output's disk says is an ExportError by now
        raise CheckpointError(f"cannot read '{e.filename}': {e.strerror or e}") from e


def _check_output(path: Path) -> None:
    if path.name in ("", ".."):
        raise ExportError(f"'{path}' cannot be a checkpoint's name; give the path of a folder to make")
    if os.path.lexists(path):
        raise ExportError(f"'{path}' exists already; choose another name or remove it")


def _check_shard_names(a: Checkpoint) -> None:
    strange = [shard.path.name for shard in a.shards if shard.path.suffix != ".safetensors"]
    if strange:
        raise CheckpointError(f"'{a.path}' has shards that are not called .safetensors: {', '.join(strange)}")


def _check_space(a: Checkpoint, writer: BundleWriter) -> None:
    needed = sum(s.path.stat().st_size for s in a.shards if not writer.has(s.path.name))
    free = shutil.disk_usage(writer.partial).free
    if needed > free:
        raise ExportError(f"{needed / 1e9:.1f} GB are needed for '{writer.output}', {free / 1e9:.1f} GB are free there")


def _record(a: Checkpoint, b: Checkpoint, alpha: float, report: Progress) -> bytes:
    """merge.json: what was merged. Its hash tells whether an interrupted merge was of the same."""
    record = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "computed": "alpha * a + (1 - alpha) * b",
        "alpha": alpha,
        "a": _source(a, report),
        "b": _source(b, report),
        "edge_sdk": __version__,
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def _write(writer: BundleWriter, a: Checkpoint, b: Checkpoint, alpha: float, report: Progress) -> None:
    _check_space(a, writer)
    for shard in a.shards:
        if not writer.has(shard.path.name):
            _write_shard(writer, shard, a, b, alpha, report)
    for name in _kept_files(a):
        writer.write(name, (a.path / name).read_bytes())


def _write_shard(
    writer: BundleWriter, shard: TensorFile, a: Checkpoint, b: Checkpoint, alpha: float, report: Progress
) -> None:
    """A's header as it is, then the tensors where it says that they lie."""
    tied = aliases(a)
    name = shard.path.name
    total = shard.path.stat().st_size
    with disk_errors(writer.partial), writer.path(name).open("wb") as file:
        done = file.write(shard.header)
        for tensor in sorted(shard, key=lambda t: (shard.entries[t].begin, shard.entries[t].end)):
            other = counterpart(tensor, b, tied)
            for piece in _mixed(tensor, shard, b.shard(other or tensor), other or tensor, alpha):
                done += file.write(piece.data)
                report(f"merging {name}", min(done, total - 1), total)
    writer.finish(name)
    report(f"merging {name}", total, total)


def _mixed(name: str, first: TensorFile, second: TensorFile, other: str, alpha: float) -> Iterator[Array]:
    """One tensor of the result in order, in A's dtype."""
    to, from_ = first.entries[name], second.entries[other]
    pieces = zip(first.pieces(name, PIECE_VALUES), second.pieces(other, PIECE_VALUES), strict=True)
    if not to.is_float:  # equal in both: `check_mergeable` looked
        yield from (a for a, _ in pieces)
        return
    kind = np.dtype(np.float64 if to.dtype == "F64" else np.float32)
    for a, b in pieces:
        x, y = _widen(a, to, kind), _widen(b, from_, kind)
        result, finite = _narrow(mix(x, y, alpha), to)
        if not (finite and np.isfinite(x).all() and np.isfinite(y).all()):  # with alpha 0 or 1 one is not in the result
            raise CheckpointError(_not_finite(name, (first, to, a), (second, from_, b)))
        yield result


def mix(a: Array, b: Array, alpha: float) -> Array:
    """alpha * a + (1 - alpha) * b in the arrays' own type; a where both are equal."""
    if alpha in (0.0, 1.0):  # exactly one of them: 0 * b could still turn a -0 into 0
        return a if alpha == 1.0 else b
    with np.errstate(over="ignore", invalid="ignore"):  # looked for afterwards, with the tensor's name
        result: Array = a * a.dtype.type(alpha)
        result += b * a.dtype.type(1.0 - alpha)
    np.copyto(result, a, where=a == b)
    return result


def _widen(stored: Array, entry: Entry, kind: np.dtype[Any]) -> Array:
    values = widen_bfloat16(stored) if entry.dtype == "BF16" else stored
    with np.errstate(over="ignore"):  # a float64 can be too large
        return values.astype(kind, copy=False)


def _narrow(values: Array, entry: Entry) -> tuple[Array, bool]:
    """The values as they are stored, and whether every one is finite, before and after rounding."""
    finite = bool(np.isfinite(values).all())
    if entry.dtype == "BF16":
        bits = narrow_bfloat16(values)
        return bits, finite and not ((bits & np.uint16(0x7F80)) == 0x7F80).any()
    with np.errstate(over="ignore"):
        stored = values.astype(entry.storage, copy=False)
    return stored, finite and bool(np.isfinite(stored).all())


def _not_finite(name: str, *sources: tuple[TensorFile, Entry, Array]) -> str:
    for file, entry, stored in sources:
        values = widen_bfloat16(stored) if entry.dtype == "BF16" else stored
        if not np.isfinite(values).all():
            return f"tensor '{name}' holds NaN or infinity in '{file.path}'"
    file, entry, _ = sources[0]
    return f"tensor '{name}': the result is too large for {entry.dtype}, in which '{file.path}' stores it"


def _kept_files(a: Checkpoint) -> list[str]:
    """Configuration, tokenizers and licence, as relative names; weights of any other kind are not taken along."""
    weights = {shard.path.name for shard in a.shards} | {RECORD}
    found = []
    for path in sorted([*a.path.iterdir(), *(a.path / _TOKENIZER_FOLDER).glob("*")]):
        index = path.name.endswith(".index.json")  # of these weights, or of some that lie beside them
        kept = path.name == a.index if index else path.suffix in _KEPT_SUFFIXES or path.name in _KEPT_NAMES
        if kept and path.name not in weights and path.is_file():
            found.append(path.relative_to(a.path).as_posix())
    return found


def _source(checkpoint: Checkpoint, report: Progress) -> dict[str, Any]:
    """A checkpoint's name and the sha256 of its files; no path of this machine."""
    paths = [checkpoint.path / n for n in ("config.json", "tokenizer.json") if (checkpoint.path / n).is_file()]
    paths += [shard.path for shard in checkpoint.shards]
    total, done, files = sum(p.stat().st_size for p in paths), 0, {}
    what = f"hashing {checkpoint.path.resolve().name}"
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                report(what, done, total)
        files[path.name] = digest.hexdigest()
    return {"name": checkpoint.path.resolve().name, "files": files}


def _states(checkpoint: Checkpoint) -> list[tuple[str, int, int]]:
    """Changes when a source file does."""
    paths = [shard.path for shard in checkpoint.shards] + [checkpoint.path / name for name in _kept_files(checkpoint)]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _other_dtypes(a: Checkpoint, b: Checkpoint) -> dict[str, int]:
    tied = aliases(a)
    pairs = ((a.entry(name), b.entry(counterpart(name, b, tied) or name)) for name in a)
    return dict(Counter(f"{y.dtype} -> {x.dtype}" for x, y in pairs if x.dtype != y.dtype))
