"""A checkpoint folder -> PyTorch modules, and back into a folder of the same layout.

Reading and checking are the exporter's own (`edge_sdk.export`), so what loads here exports, and the same mistakes are
named the same way. Everything but the tensors is copied from the folder a model came from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from edge_sdk.config import ModelConfig
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.merge import RECORD
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.random_checkpoint.writer import new_folder
from edge_sdk.export.weights import language_weights, shared_tables
from samples.nano.model.language import LanguageHalf

MOST_PART_BYTES = 15_900_000  # with its header 16 MB: larger files do not travel well between machines
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass
class Loaded:
    """A model, and what writing it back needs."""

    model: LanguageHalf
    folder: Path
    types: dict[str, torch.dtype]  # of each tensor as it is stored
    unread: dict[str, Tensor] = field(default_factory=dict)  # in the checkpoint, not in the computation

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def load(folder: str | os.PathLike[str]) -> Loaded:
    """The language half of a checkpoint, in float32.

    Raises:
        CheckpointError: what is missing, does not fit, or is not supported.
        Error: a model this recipe does not train (mixture of experts, no speech head, mode "add").
    """
    checkpoint = Checkpoint(folder)
    try:
        language = read_language_config(checkpoint)
        checkpoint.check(language_weights(language.model, language.tied))
        model = LanguageHalf(language.model, tied=language.tied)
        own, shared = model.state_dict(), shared_tables(language.tied)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(torch.from_numpy(np.array(checkpoint.read(shared.get(name, name)))))
        types = {name: _TYPES[checkpoint.entry(name).dtype] for name in checkpoint}
        unread = {
            name: torch.from_numpy(np.array(checkpoint.read(name)))
            for name in checkpoint
            if name not in own and name not in shared
        }
        return Loaded(model, Path(folder), types, unread)
    finally:
        checkpoint.close()


def save(loaded: Loaded, target: str | os.PathLike[str], *, part_bytes: int = MOST_PART_BYTES) -> None:
    """Write the model as a checkpoint folder: the same tensors in the same types, the same other files.

    Args:
        part_bytes: more than that become several files and an index.

    Raises:
        ExportError: the folder exists and is not empty, or cannot be written.
    """
    with new_folder(target) as folder:
        copy_settings(loaded.folder, folder)
        write_tensors(folder, tensors(loaded), part_bytes)


def tensors(loaded: Loaded) -> dict[str, Tensor]:
    """What the checkpoint holds, by name, in the stored types; tables that are stored twice are copied."""
    own, shared = loaded.model.state_dict(), shared_tables(loaded.model.tied)
    out = {}
    for name, dtype in loaded.types.items():
        value = loaded.unread.get(name)
        if value is None:
            value = own[name] if name in own else own[shared[name]]
        out[name] = value.detach().to("cpu", dtype).contiguous()
    return out


def copy_settings(source: Path, target: Path) -> None:
    """Every file of a checkpoint that is not a tensor's: config, tokenizers, template, defaults. A merge's record stays
    behind: it is about tensors that are others now."""
    for path in sorted(source.iterdir()):
        if path.name.endswith((".safetensors", ".safetensors.index.json")) or path.name == RECORD:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def write_tensors(folder: Path, values: Mapping[str, Tensor], part_bytes: int = MOST_PART_BYTES) -> None:
    """model.safetensors, or several parts of at most `part_bytes` (unless one tensor is larger) and their index."""
    parts = list(split(values, part_bytes))
    if len(parts) == 1:
        write_part(folder / "model.safetensors", parts[0])
        return
    where = {}
    for n, part in enumerate(parts):
        name = f"model-{n + 1:05}-of-{len(parts):05}.safetensors"
        write_part(folder / name, part)
        where |= dict.fromkeys(part, name)
    size = sum(v.nbytes for v in values.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def split(values: Mapping[str, Tensor], part_bytes: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    for name in sorted(values):
        if part and sum(v.nbytes for v in part.values()) + values[name].nbytes > part_bytes:
            yield part
            part = {}
        part[name] = values[name]
    yield part


def write_part(path: Path, values: Mapping[str, Tensor]) -> None:
    """The library refuses tensors that share memory (tied tables): each gets its own. (It would write the file for its
    owner's eyes only.)"""
    path.write_bytes(tensor_bytes({name: value.clone() for name, value in values.items()}, metadata={"format": "pt"}))
