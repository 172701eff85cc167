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
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from edge_sdk.errors import Error
from edge_sdk.export.checkpoint import read_json
from edge_sdk.tensorfile import TensorFile, write_tensors
from samples.nano.codec.files import digest
from samples.nano.codec.weights import WEIGHTS
from samples.nano.model.checkpoint import load, save
from samples.nano.model.fresh import NEEDED, write_fresh
from samples.nano.model.language import LanguageHalf
from samples.nano.model.whisper import encoder_state, read_tensors
from samples.nano.settings import NANO, Settings
from samples.nano.voices.packages import WHISPER_TINY_EN, model_file

LANGUAGE = "language"
TENSORS, ABOUT = f"{LANGUAGE}.safetensors", f"{LANGUAGE}.json"
# Of the tokenizer: all else of a checkpoint is the preset's, or is written anew from these.
_TOKENIZER = (
    *NEEDED,
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
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
    """Write what `take` needs of a checkpoint, and the hash of it.

    Raises:
        Error: it is not of this preset; nothing is then written.
    """
    state, known = own_tensors(load(checkpoint).model), whispers(settings)
    state = {name: value for name, value in state.items() if name not in known or not torch.equal(value, known[name])}
    with TemporaryDirectory() as temporary:
        fresh = Path(temporary) / LANGUAGE
        fresh.mkdir()
        for name in _TOKENIZER:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, fresh / name)
        with (fresh / TENSORS).open("wb") as file:
            write_tensors(file, narrowed(state))
        about = {"name": settings.name, "sha256": digest(fresh / TENSORS)}
        (fresh / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        take(fresh, fresh.with_name("taken"), settings)  # before anything in `folder` is replaced
        shutil.copytree(fresh, folder, dirs_exist_ok=True)


def take(folder: Path, target: Path, settings: Settings) -> None:
    """Write the checkpoint.

    Raises:
        Error: there is none, it is damaged or of another preset, or `target` is there already.
    """
    tensors, text = folder / TENSORS, folder / ABOUT
    if not (tensors.is_file() and text.is_file()):
        raise Error(f"'{folder}' has no trained language half ({TENSORS}, {ABOUT})")
    about = read_json(text)
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
        state, wanted = whispers(settings) | widened(tensors), own_tensors(loaded.model)
        wrong = [
            n
            for n in sorted({*state, *wanted})
            if n not in state or n not in wanted or state[n].shape != wanted[n].shape
        ]
        if wrong:
            raise Error(f"'{tensors}' does not fit the preset '{settings.name}': {', '.join(wrong[:5])}")
        loaded.model.load_state_dict(state, strict=False)
        save(loaded, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def own_tensors(model: LanguageHalf) -> dict[str, Tensor]:
    """Its tensors by name, a tied table once."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if model.tied:
        state.pop("language_model.lm_head.weight")
    return state


def whispers(settings: Settings) -> dict[str, Tensor]:
    """Tensors of Whisper tiny.en's encoder by the checkpoint's names, where the preset's encoder begins with them."""
    if settings.encoder != NANO.encoder:
        return {}
    state = encoder_state(read_tensors(model_file(WHISPER_TINY_EN)), settings.encoder.layers)
    return {_TOWER + name: torch.from_numpy(value) for name, value in state.items()}


def narrowed(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Matrices in int8 with a float32 scale for each row, all else in float16."""
    out: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if value.dim() != 2:
            out[name] = value.half().numpy()
            continue
        scale = (value.abs().amax(dim=1) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        out[name] = (value / scale[:, None]).round().to(torch.int8).numpy()
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
