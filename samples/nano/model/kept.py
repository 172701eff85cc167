"""The tree's trained language half, as a checkpoint that stages go on from (--source WORK/language).

samples/nano/weights/language holds it for the preset `pocket`: the tokenizer's files, and the tensors that are not
Whisper's own, matrices in int8 with a scale a row, a quarter of their size; training has made up for the rounding
after a few steps. `--save CHECKPOINT` writes one there instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_sdk.errors import Error
from edge_sdk.tensorfile import TensorFile, write_tensors
from samples.nano.codec.files import digest
from samples.nano.codec.weights import WEIGHTS
from samples.nano.model.checkpoint import load, save
from samples.nano.model.fresh import write_fresh
from samples.nano.model.whisper import encoder_state, read_tensors
from samples.nano.settings import NANO, Settings
from samples.nano.voices.packages import WHISPER_TINY_EN, model_file

LANGUAGE = "language"
TENSORS, ABOUT = f"{LANGUAGE}.safetensors", f"{LANGUAGE}.json"
_TOKENIZER = (".json", ".txt", ".jinja")
_CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
_TOWER = "continuous_audio_tower."
_SCALE = ".scale"  # behind a matrix's name: what its rows are multiplied by
_LARGEST = 127


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, default=WEIGHTS / LANGUAGE, help="their folder (default: this tree's)")
    parser.add_argument("--save", type=Path, metavar="CHECKPOINT", help="write this checkpoint there")
    parser.add_argument("-o", "--output", type=Path, help=f"the checkpoint that is made (default: WORK/{LANGUAGE})")


def run(options: argparse.Namespace) -> int:
    if options.save:
        keep(options.save, options.weights, options.settings)
        print(f"written to {options.weights}")
        return 0
    output = options.output or options.work / LANGUAGE
    take(options.weights, output, options.settings)
    print(f"wrote {output}: give it to a stage as --source")
    return 0


def keep(checkpoint: Path, folder: Path, settings: Settings) -> None:
    """Write what `take` needs of a checkpoint, and the hash of it."""
    loaded = load(checkpoint)
    state = {name: value.detach() for name, value in loaded.model.state_dict().items()}
    if loaded.model.tied:
        state.pop("language_model.lm_head.weight")
    known = whispers(settings)
    own = {name: value for name, value in state.items() if name not in known or not torch.equal(value, known[name])}
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(checkpoint.iterdir()):
        of_tokenizer = path.suffix in _TOKENIZER and path.name not in _CONFIGS
        if path.is_file() and of_tokenizer and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    with (folder / TENSORS).open("wb") as file:
        write_tensors(file, narrowed(own))
    about = {"name": settings.name, "sha256": digest(folder / TENSORS)}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def take(folder: Path, target: Path, settings: Settings) -> None:
    """Write the checkpoint.

    Raises:
        Error: there is none, it is damaged or of another preset, or `target` is there already.
    """
    tensors, text = folder / TENSORS, folder / ABOUT
    if not (tensors.is_file() and text.is_file()):
        raise Error(f"'{folder}' has no trained language half ({TENSORS}, {ABOUT})")
    about = json.loads(text.read_text(encoding="utf-8"))
    if about.get("name") != settings.name:
        raise Error(f"the language half in '{folder}' is of the preset '{about.get('name')}', not '{settings.name}'")
    if digest(tensors) != about.get("sha256"):
        raise Error(f"'{tensors}' is not the file that '{ABOUT}' was written for")
    if target.exists():
        raise Error(f"'{target}' is there already; remove it, or give another --output")
    fresh = target.with_name(f"{target.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        write_fresh(fresh, settings, folder, whisper=None, seed=settings.seed)
        (fresh / ABOUT).unlink()
        loaded = load(fresh)
        state = whispers(settings) | widened(tensors)
        wanted = loaded.model.state_dict()
        wrong = [name for name, value in state.items() if name not in wanted or wanted[name].shape != value.shape]
        missing = [name for name in wanted if name not in state and not (loaded.model.tied and "lm_head" in name)]
        if wrong or missing:
            raise Error(f"'{tensors}' does not fit the preset '{settings.name}': {', '.join((wrong + missing)[:5])}")
        loaded.model.load_state_dict(state, strict=False)
        save(loaded, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def whispers(settings: Settings) -> dict[str, Tensor]:
    """Tensors of Whisper tiny.en's encoder by the checkpoint's names, where the preset's encoder begins with them."""
    if settings.encoder != NANO.encoder:
        return {}
    state = encoder_state(read_tensors(model_file(WHISPER_TINY_EN)), settings.encoder.layers)
    return {_TOWER + name: torch.from_numpy(value) for name, value in state.items()}


def narrowed(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Matrices in int8 with a scale for each row, all else in float16."""
    out: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if value.dim() != 2:
            out[name] = value.half().numpy()
            continue
        scale = (value.abs().amax(dim=1) / _LARGEST).clamp(min=torch.finfo(torch.float16).tiny).half()
        out[name] = (value / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8).numpy()
        out[name + _SCALE] = scale.numpy()
    return out


def widened(path: Path) -> dict[str, Tensor]:
    """What was narrowed, in float32."""
    file = TensorFile(path)
    try:
        read = {name: torch.from_numpy(np.array(file.read(name))).float() for name in file}
    finally:
        file.close()
    scales = {name.removesuffix(_SCALE): read.pop(name) for name in list(read) if name.endswith(_SCALE)}
    return {name: value * scales[name][:, None] if name in scales else value for name, value in read.items()}
