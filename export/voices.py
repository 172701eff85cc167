"""Speaker embeddings from files: `.npy`, or `.pt` read as plain tensors."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import CheckpointError
from edge_sdk.export.vocoder_checkpoint import load_torch

UPSTREAM_VOICE, UPSTREAM_DIM = "zh_female", 192  # the only voice Fun-Audio-Chat uses (data/README.md)
_EMBEDDING = "embedding"
_FILE_NAME = re.compile(r"\w[\w.-]*")

Array = np.ndarray[Any, Any]


def read_voices(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Every voice of a file: {name: float32 [speaker_dim]}.

    `.npy` holds one embedding, [D] or [1, D], named after the file. `.pt` holds one such tensor, or a speaker table
    {name: {"embedding": tensor, ...}} whose other entries are left alone.

    Raises:
        CheckpointError: the file is not that, or an embedding is not finite or zero.
    """
    file = Path(path)
    if file.suffix == ".npy":
        return {file.stem: _embedding(_load_npy(file), f"'{file}'")}
    if file.suffix != ".pt":
        raise CheckpointError(f"a voice is a .npy or a .pt file, found '{file}'")
    table = load_torch(file, CheckpointError)
    if set(table) == {""}:
        return {file.stem: _embedding(_to_numpy(table[""]), f"'{file}'")}
    voices = {}
    for name, entry in table.items():
        where = f"'{file}', voice {name!r}"
        if not isinstance(name, str) or not isinstance(entry, dict) or _EMBEDDING not in entry:
            raise CheckpointError(f"{where}: a speaker table maps names to entries with an '{_EMBEDDING}'")
        voices[name] = _embedding(_to_numpy(entry[_EMBEDDING]), where)
    if not voices:
        raise CheckpointError(f"'{file}' has no voices")
    return voices


def pick_voice(path: str | os.PathLike[str], name: str, dim: int) -> Array:
    """The voice called `name` of a speaker table, or the only voice of a file, float32 [dim].

    `FILE:ENTRY` takes the table's entry of that name instead.
    """
    file, found_colon, entry = os.fspath(path).rpartition(":")
    if found_colon and not Path(path).exists():
        path, wanted = file, entry
    else:
        wanted = name
    voices = read_voices(path)
    if wanted not in voices and (len(voices) > 1 or wanted != name):
        raise CheckpointError(
            f"'{path}' has no voice '{wanted}'; it has {', '.join(sorted(voices))}. FILE:ENTRY takes one of them"
        )
    found = voices[wanted] if wanted in voices else next(iter(voices.values()))
    if found.shape != (dim,):
        raise CheckpointError(f"voice '{name}' of '{path}' has {len(found)} values, the vocoder asks for {dim}")
    return found


def known_voices(folder: Path, dim: int) -> dict[str, Path]:
    """Voices that need not be named: those in the vocoder's own `voices` folder, and upstream's one voice."""
    found = {file.stem: file for file in sorted((folder / "voices").glob("*.npy"))}
    if dim == UPSTREAM_DIM:
        found.setdefault(
            UPSTREAM_VOICE, Path(str(resources.files("edge_sdk.export") / "data" / f"{UPSTREAM_VOICE}.npy"))
        )
    return found


def voice_file(name: str) -> str:
    """The voice's file in a bundle."""
    if not _FILE_NAME.fullmatch(name):
        raise CheckpointError(f"a voice's name becomes a file name: letters, digits, '_', '-', '.'; found {name!r}")
    return f"voices/{name}.npy"


def _load_npy(file: Path) -> Array:
    try:
        array: Array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise CheckpointError(f"cannot read the voice '{file}': {e}") from e
    return array


def _to_numpy(value: Any) -> Array:
    if not hasattr(value, "is_floating_point"):
        raise CheckpointError(f"an embedding must be a tensor, found {type(value).__name__}")
    array: Array = (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
    return array


def _embedding(array: Array, where: str) -> Array:
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or array.size == 0 or array.dtype.kind != "f":
        raise CheckpointError(
            f"{where}: an embedding must be float [D] or [1, D], found {array.dtype}{list(array.shape)}"
        )
    values: Array = array.astype(np.float32)
    if not np.isfinite(values).all() or not values.any():
        raise CheckpointError(f"{where}: the embedding has NaN or infinite values, or is all zero")
    return values
