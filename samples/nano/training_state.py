"""A training run on the disk: weights and optimizers' state in safetensors parts of at most 16 MB, and one JSON file.

`state.json` is replaced last and in one step, so a run that is killed at any moment leaves the last whole save.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.errors import Error
from edge_sdk.files import write_file
from edge_sdk.tensorfile import TensorFile, write_tensors
from samples.nano.optimizers import Optimizers

STATE = "state.json"
PART_BYTES = 16_000_000
_FORMAT = "samples.nano.training"
_ENTRY_BYTES = 160  # of a part's header, for each piece, beside its name
_WEIGHT = "weight:"
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW, and of Muon


def save(folder: Path, step: int, model: nn.Module, optimizers: Optimizers, run: Mapping[str, Any]) -> None:
    """Write the state after `step` steps; the one before is removed when this one is complete.

    Args:
        run: what tells this run from others, and must be equal when it is taken up.
    """
    name = f"step-{step:08}"
    fresh, target = folder / f"{name}.new", folder / name
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = dict(_tensors(model, optimizers))
    parts = {}
    for n, part in enumerate(_parts(tensors)):
        file = fresh / f"part-{n:03}.safetensors"
        with file.open("wb") as out:
            write_tensors(out, part)
            out.flush()
            os.fsync(out.fileno())
        parts[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before it could write state.json
    fresh.rename(target)
    state = {
        "format": _FORMAT,
        "step": step,
        "folder": name,
        "parts": parts,
        "tensors": {n: [list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in tensors.items()},
        "run": dict(run),
    }
    write_file(folder / STATE, (json.dumps(state, indent=1) + "\n").encode())
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def restore(
    folder: Path, model: nn.Module, optimizers: Optimizers | None = None, run: Mapping[str, Any] | None = None
) -> int | None:
    """Put what was saved into the model, and into the optimizers if they are given.

    Returns the step, None without a save.

    Raises:
        Error: it is damaged, or of another model or run.
    """
    if not (folder / STATE).exists():
        return None
    state = _read_state(folder)
    _check_run(folder, state["run"], run)
    _check_model(folder, state["tensors"], model)
    tensors = _read_tensors(folder, state)
    model.load_state_dict({n.removeprefix(_WEIGHT): t for n, t in tensors.items() if n.startswith(_WEIGHT)})
    if optimizers is not None:
        _restore_moments(model, optimizers, tensors)
    step: int = state["step"]
    return step


def _tensors(model: nn.Module, optimizers: Optimizers) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        yield _WEIGHT + name, tensor
    for name, parameter in model.named_parameters():
        for key, tensor in optimizers.state_of(parameter).items():
            yield f"{key}:{name}", tensor


def _restore_moments(model: nn.Module, optimizers: Optimizers, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        state = optimizers.state_of(parameter) if parameter.requires_grad else {}
        if (step := tensors.get(f"step:{name}")) is not None:
            state["step"] = step  # stays on the CPU, as AdamW keeps it
        for key in _MOMENTS:
            if (moment := tensors.get(f"{key}:{name}")) is not None:
                state[key] = torch.empty_like(parameter).copy_(moment)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Pieces of flat tensors, named NAME@FIRST_VALUE, as many as a part holds."""
    part: dict[str, np.ndarray[Any, Any]] = {}
    left = PART_BYTES
    for name, tensor in tensors.items():
        flat = _to_numpy(tensor)
        begin = 0
        while begin < flat.size:
            room = (left - _ENTRY_BYTES - len(name.encode())) // flat.itemsize
            if room <= 0:
                yield part
                part, left = {}, PART_BYTES
                continue
            piece = flat[begin : begin + room]
            part[f"{name}@{begin}"] = piece
            left -= piece.nbytes + _ENTRY_BYTES + len(name.encode())
            begin += piece.size
    if part:
        yield part


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Flat; bfloat16, which NumPy lacks, as the int16 of the same bits."""
    flat = tensor.detach().reshape(-1).cpu()
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] == _FORMAT:
            return dict(state)
    except (ValueError, KeyError, TypeError) as e:
        raise Error(f"'{folder / STATE}' is damaged ({e}); remove '{folder}' to begin anew") from e
    raise Error(f"'{folder / STATE}' is no training state of this recipe; give another folder")


def _check_run(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
    if wanted is None or found == json.loads(json.dumps(wanted)):
        return
    keys = [k for k in dict(found) | dict(wanted) if found.get(k) != json.loads(json.dumps(wanted.get(k)))]
    told = ", ".join(f"{k} {found.get(k)!r}, now {wanted.get(k)!r}" for k in keys)
    raise Error(f"'{folder}' was begun with other settings ({told}); give another folder, or remove it to begin anew")


def _check_model(folder: Path, saved: Mapping[str, Any], model: nn.Module) -> None:
    found = {n.removeprefix(_WEIGHT): shape for n, (shape, _) in saved.items() if n.startswith(_WEIGHT)}
    wanted = {n: list(t.shape) for n, t in model.state_dict().items()}
    other = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
    if other:
        told = ", ".join(f"{n} {found.get(n, 'absent')}, now {wanted.get(n, 'absent')}" for n in other[:5])
        raise Error(f"'{folder}' holds another model ({len(other)} tensors differ: {told}); give another folder")


def _read_tensors(folder: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    pieces: dict[str, np.ndarray[Any, Any]] = {}
    for name, digest in state["parts"].items():
        path = folder / state["folder"] / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as e:
            raise Error(f"cannot read '{path}': {e.strerror or e}; remove '{folder}' to begin anew") from e
        if found != digest:
            raise Error(f"'{path}' is not what was saved (its sha256 differs); remove '{folder}' to begin anew")
        file = TensorFile(path)
        pieces |= {piece: file.read(piece) for piece in file}
        file.close()
    return {name: _join(name, shape, dtype, pieces) for name, (shape, dtype) in state["tensors"].items()}


def _join(name: str, shape: list[int], dtype: str, pieces: Mapping[str, np.ndarray[Any, Any]]) -> Tensor:
    size, found = math.prod(shape), []
    at = 0
    while at < size:
        found.append(pieces[f"{name}@{at}"])
        at += found[-1].size
    kind = getattr(torch, dtype)
    if not found:
        return torch.zeros(shape, dtype=kind)
    flat = torch.from_numpy(np.concatenate(found))
    return (flat.view(kind) if kind == torch.bfloat16 else flat).reshape(shape)
