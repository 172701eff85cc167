"""A trained model on disk: NAME.safetensors and NAME.json, which says its sizes and the hash of the tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from edge_sdk.errors import Error
from edge_sdk.tensorfile import TensorFile, write_tensors

Model = TypeVar("Model", bound=nn.Module)


def save_tensors(path: Path, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """`state_dict()` in one type, under a temporary name first."""
    tensors = {name: value.detach().to("cpu", dtype).numpy() for name, value in model.state_dict().items()}
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        write_tensors(file, tensors)
    part.replace(path)


def load_tensors(path: Path, model: nn.Module) -> None:
    """Raises Error naming the tensors that are missing, unknown or of another shape."""
    file = TensorFile(path)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: file.entries[name].shape for name in file}
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise Error(f"'{path}' is of other sizes: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}")
    model.load_state_dict({name: torch.from_numpy(file.read(name)) for name in file})
    file.close()


def save_model(
    folder: Path, name: str, model: nn.Module, sizes: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, text = folder / f"{name}.safetensors", folder / f"{name}.json"
    save_tensors(tensors, model, dtype)
    part = text.with_name(f"{text.name}.part")
    part.write_text(json.dumps({**sizes, "sha256": digest(tensors)}, indent=2) + "\n", encoding="utf-8")
    part.replace(text)


def load_model(folder: Path, name: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    """The model that `build` makes of the sizes, with its tensors, ready to be asked.

    Args:
        name: also that of the command that trains it.
    """
    tensors, text = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not (tensors.is_file() and text.is_file()):
        raise Error(f"there is no trained {name} in '{folder}': run python -m samples.nano {name} first")
    try:
        sizes = json.loads(text.read_text(encoding="utf-8"))
        model = build(sizes)
        expected = sizes["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        raise Error(f"'{text}' does not describe a {name}: {type(e).__name__} {e}") from e
    if digest(tensors) != expected:
        raise Error(f"'{tensors}' is not the file that '{text.name}' was written for: train it again")
    load_tensors(tensors, model)
    return model.eval()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
