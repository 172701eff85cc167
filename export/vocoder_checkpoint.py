"""A CosyVoice3 vocoder folder: `cosyvoice3.yaml` as data, the tensors of flow and hift read one at a time.

Tensors come from `flow.safetensors` / `hift.safetensors` if they are there (no torch needed), else from `flow.pt` /
`hift.pt` with `weights_only=True`. Every tensor is used or refused by name.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge_sdk.config import FlowConfig, WaveformConfig
from edge_sdk.errors import CheckpointError
from edge_sdk.export.noise import UPSTREAM_FRAMES, source_noise_skip
from edge_sdk.export.vocoder_hyperparameters import read_hyperparameters
from edge_sdk.export.vocoder_weights import OLD_SPELLING, Shape, flow_weights, waveform_weights
from edge_sdk.tensorfile import TensorFile

CONFIG_NAME = "cosyvoice3.yaml"
DEFAULT_STEPS = (10, 5, 4)
_HIFT_PREFIX = "generator."  # a checkpoint of the whole GAN

Array = np.ndarray[Any, Any]


class TensorSource(Protocol):
    """Named tensors of one file."""

    path: Path

    def names(self) -> Iterator[str]: ...

    def describe(self, name: str) -> tuple[str, tuple[int, ...], bool]:
        """(dtype, shape, whether it is a floating type)."""

    def read(self, name: str) -> Array:
        """A copy of one tensor, float32."""


class SafetensorsSource:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TensorFile(path, CheckpointError)

    def names(self) -> Iterator[str]:
        return iter(self._file)

    def describe(self, name: str) -> tuple[str, tuple[int, ...], bool]:
        entry = self._file.entries[name]
        return entry.dtype, entry.shape, entry.is_float

    def read(self, name: str) -> Array:
        return self._file.read(name).astype(np.float32, copy=False)


class TorchSource:
    """A `.pt` state dict, mapped where its format allows it. Nothing but tensors is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Any] = {}
        for name, value in load_torch(path, CheckpointError).items():
            if not (isinstance(name, str) and hasattr(value, "is_floating_point")):
                raise CheckpointError(
                    f"'{path}' is not a flat state dict: its entry {name!r} is a {type(value).__name__}"
                )
            self._tensors[name] = value

    def names(self) -> Iterator[str]:
        return iter(self._tensors)

    def describe(self, name: str) -> tuple[str, tuple[int, ...], bool]:
        tensor = self._tensors[name]
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), bool(tensor.is_floating_point())

    def read(self, name: str) -> Array:
        array: Array = self._tensors[name].detach().float().contiguous().numpy().copy()
        return array


def load_torch(path: Path, error: type[CheckpointError]) -> dict[Any, Any]:
    """torch.load with weights_only=True, as a dict. Raises `error` if torch is missing or the file is not that."""
    try:
        import torch
    except ImportError as e:
        raise error(
            f"reading '{path}' needs PyTorch ({e}): install it without CUDA with `pip install torch "
            f"--index-url https://download.pytorch.org/whl/cpu`, or convert the file to "
            f"'{path.with_suffix('.safetensors').name}'"
        ) from e
    try:
        # Only the zip format can be mapped; older files are read whole.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as e:
        raise error(f"cannot open '{path}': {e.strerror or e}") from e
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError) as e:
        reason = str(e).strip().split("\n", 1)[0] or type(e).__name__
        raise error(f"'{path}' cannot be read as plain tensors; it is damaged or holds other objects: {reason}") from e
    if isinstance(value, dict):
        return value
    return {"": value}


def open_source(folder: Path, stem: str) -> TensorSource:
    """`stem`.safetensors if it exists, else `stem`.pt."""
    for suffix, source in ((".safetensors", SafetensorsSource), (".pt", TorchSource)):
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return source(path)
    raise CheckpointError(f"vocoder folder '{folder}' has neither {stem}.safetensors nor {stem}.pt")


class Weights:
    """The tensors of one file under canonical names, checked against the shapes they must have."""

    def __init__(self, source: TensorSource, prefix: str = "") -> None:
        self.source = source
        self.sizes: dict[str, int] = {}  # what the words in the shapes turned out to be
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stored: dict[str, str] = {}
        self._twice: list[str] = []
        for name in source.names():
            canonical = _canonical(name, prefix)
            if canonical in self._stored:
                self._twice.append(f"the same tensor twice: {self._stored[canonical]} and {name}")
            self._stored.setdefault(canonical, name)

    def check(self, wanted: Mapping[str, Shape]) -> list[str]:
        """Every difference to `wanted`, in words; reads each tensor once for values that are not finite."""
        problems = [f"missing: {name}" for name in wanted if name not in self._stored]
        problems += [f"not part of this model: {self._stored[n]}" for n in self._stored if n not in wanted]
        problems += self._twice
        for name in wanted:
            if name in self._stored:
                problems += self._check_tensor(name, wanted[name])
        return [f"{self.source.path.name}: {p}" for p in problems]

    def _check_tensor(self, name: str, wanted: Shape) -> list[str]:
        stored = self._stored[name]
        dtype, shape, is_float = self.source.describe(stored)
        if not self._fits(shape, wanted):
            asked = [self.sizes.get(d, d) if isinstance(d, str) else d for d in wanted]
            return [f"wrong shape: {stored} is {list(shape)}, {CONFIG_NAME} asks for {asked}"]
        self.shapes[name] = shape
        if not is_float:
            return [f"wrong dtype: {stored} is {dtype}, expected a floating type"]
        bad = int(np.count_nonzero(~np.isfinite(self.source.read(stored))))
        return [f"not finite: {stored} has {bad} NaN or infinite values"] if bad else []

    def _fits(self, shape: tuple[int, ...], wanted: Shape) -> bool:
        if len(shape) != len(wanted) or 0 in shape:
            return False
        return all(
            size == (self.sizes.setdefault(want, size) if isinstance(want, str) else want)
            for size, want in zip(shape, wanted, strict=True)
        )

    def read(self, name: str) -> Array:
        """One tensor as float32, by its canonical name."""
        return self.source.read(self._stored[name])


def _canonical(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    module, _, leaf = name.rpartition(".")
    return f"{module}.{OLD_SPELLING[leaf]}" if leaf in OLD_SPELLING else name


@dataclass(frozen=True)
class VocoderCheckpoint:
    """A folder that was checked completely: what it computes, and its tensors by name."""

    path: Path
    flow: FlowConfig
    waveform: WaveformConfig
    flow_weights: Weights
    waveform_weights: Weights


def read_vocoder(
    folder: str | os.PathLike[str], *, steps: tuple[int, ...] = DEFAULT_STEPS, noise_frames: int = UPSTREAM_FRAMES
) -> VocoderCheckpoint:
    """Open and check a vocoder folder. Reads every tensor once, one at a time.

    Args:
        steps: Euler step counts that the bundle will offer.
        noise_frames: columns of the fixed initial noise that the bundle will carry; caches restart behind them.

    Raises:
        CheckpointError: everything in the configuration that is missing or not supported, in one message; else
            everything about the tensors, in one message.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no vocoder folder at '{folder}'")
    found = read_hyperparameters(folder / CONFIG_NAME)
    flow = Weights(open_source(folder, "flow"))
    hift = Weights(open_source(folder, "hift"), _HIFT_PREFIX)
    problems = flow.check(flow_weights(found.flow, found.ff_dim, found.lookahead_width))
    problems += hift.check(waveform_weights(found.waveform))
    problems += _check_sizes(found.flow.dim, flow.sizes)
    if problems:
        raise CheckpointError(f"vocoder folder '{folder}' does not fit its {CONFIG_NAME}:\n  " + "\n  ".join(problems))
    return VocoderCheckpoint(
        folder,
        dataclasses.replace(
            found.flow, position_kernel=flow.sizes["position_kernel"], steps=steps, noise_frames=noise_frames
        ),
        dataclasses.replace(
            found.waveform,
            f0_lookahead_frames=hift.sizes["f0_first_kernel"] - 1,
            source_noise_skip=source_noise_skip(found.flow, found.waveform, hift.shapes),
        ),
        flow,
        hift,
    )


def _check_sizes(dim: int, sizes: Mapping[str, int]) -> list[str]:
    """What must hold for the sizes that only the tensors tell."""
    problems = []
    width, features = sizes.get("position_width", 1), sizes.get("time_features", 4)
    if dim % width:
        problems.append(f"conv_pos_embed: groups of {width} channels do not divide dim {dim}")
    if features % 2 or features < 4:
        problems.append(f"time_embed: {features} features; an even number of at least 4 is expected")
    return problems
