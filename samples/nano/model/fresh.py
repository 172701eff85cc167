"""A fresh checkpoint: config of the settings' sizes, a given tokenizer, weights drawn for training.

(`edge_sdk.export.random_checkpoint` draws weights that compute like a trained model's; those would train badly.)
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error
from edge_sdk.export.checkpoint import read_json
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.random_checkpoint.language_config import write_configs
from edge_sdk.export.random_checkpoint.specs import LanguageSpec
from edge_sdk.export.random_checkpoint.tokenizer import write_speech_tokenizer
from edge_sdk.export.random_checkpoint.writer import new_folder
from edge_sdk.export.weights import language_weights
from samples.nano.model import codetable, forms, induction
from samples.nano.model.checkpoint import Loaded, write_tensors
from samples.nano.model.language import LanguageHalf
from samples.nano.model.replies import settle
from samples.nano.model.whisper import load_into, read_tensors
from samples.nano.settings import Settings

EMBEDDING_STD = 0.5
LOGIT_STD = 0.3  # of a fresh head: near to saying nothing, so that the first steps are not spent on unlearning
NEEDED = ("tokenizer.json", "chat_template.jinja")


def write_fresh(
    target: str | os.PathLike[str], settings: Settings, tokenizer: Path, *, whisper: Path | None, seed: int
) -> None:
    """Write the checkpoint folder.

    Args:
        tokenizer: a folder with the text tokenizer's files and the chat template, which are copied.
        whisper: a CTranslate2 model.bin whose encoder is taken; None draws the encoder too.

    Raises:
        Error: the tokenizer is not the family's, or Whisper's sizes are not the settings'.
    """
    spec = settings.language_spec(text_tokens(tokenizer))
    check_added(tokenizer, spec)
    with new_folder(target) as folder:
        for path in sorted(tokenizer.iterdir()):
            if path.is_file() and path.suffix in (".json", ".txt", ".jinja"):
                shutil.copyfile(path, folder / path.name)
        write_speech_tokenizer(folder / "speech_tokenizer", spec.speech, spec.group_size)
        write_configs(folder, spec, "float32")
        settle(folder)
        loaded = draw(folder, seed)
        codetable.lay(loaded.model.audio_tower.embed_tokens.weight, settings.codec.levels, EMBEDDING_STD, seed)
        if whisper is not None:
            load_into(loaded.model.continuous_audio_tower, read_tensors(whisper))
        if loaded.model.tied:
            forms.make_alike(loaded.model.language_model.model.embed_tokens.weight, folder, spec.text_tokens)
        state = loaded.model.state_dict()
        write_tensors(folder, {name: state[name] for name in loaded.types})


def draw(folder: Path, seed: int) -> Loaded:
    """A model of the config in `folder` with fresh weights."""
    config, tied = read_config(folder)
    torch.manual_seed(seed)
    model = LanguageHalf(config, tied=tied)
    initialise(model)
    if tied and induction.fits(config.backbone):
        induction.lay(model.language_model.model, config.backbone, seed)
    return Loaded(model, folder, dict.fromkeys(language_weights(config, tied).required, torch.float32))


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """(config, tied) of a folder that has no weights yet."""
    found = read_language_config(Settled(folder))  # type: ignore[arg-type]  # asks for JSON files alone
    return found.model, found.tied


class Settled:
    """The part of `Checkpoint` that reads settings, for a folder without tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, name: str, *, required: bool = True) -> dict[str, object]:
        return read_json(self.path / name, required=required)


def initialise(model: LanguageHalf) -> None:
    """Linear maps keep the size of what they are given; what is added to a residual is smaller the deeper the stack."""
    hidden = model.config.backbone.hidden_size
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=residual_gain(model, name) / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
    logits = LOGIT_STD / math.sqrt(hidden)
    if not model.tied:
        nn.init.normal_(model.language_model.lm_head.weight, std=logits)
    head = model.audio_invert_tower.output_matching
    nn.init.normal_(head.weight, std=logits / EMBEDDING_STD / math.sqrt(head.in_features))
    # A mean of G embeddings is smaller than one of them by the root of G; both are averaged into the same row.
    nn.init.normal_(model.audio_tower.output_matching.weight, std=math.sqrt(model.config.group_size / hidden))


def residual_gain(model: LanguageHalf, name: str) -> float:
    stacks: dict[str, nn.Module] = {
        "language_model.model": model.language_model.model,
        "audio_invert_tower.crq_transformer": model.audio_invert_tower.crq_transformer,
        "continuous_audio_tower": model.continuous_audio_tower,
    }
    if not name.endswith(("o_proj", "down_proj", "out_proj", "fc2")):
        return 1.0
    depth = next(len(s.layers) for prefix, s in stacks.items() if name.startswith(prefix))  # type: ignore[arg-type]
    return 1 / math.sqrt(2 * depth)


def text_tokens(tokenizer: Path) -> int:
    """Byte-pair tokens of a tokenizer folder, added tokens not counted."""
    missing = [name for name in NEEDED if not (tokenizer / name).is_file()]
    if missing:
        raise Error(f"'{tokenizer}' lacks {', '.join(missing)}: run python -m samples.nano tokenizer first")
    return len(json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])


def check_added(tokenizer: Path, spec: LanguageSpec) -> None:
    """The added tokens' ids in the tokenizer are those that config.json will name."""
    added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    found = {t["content"]: t["id"] for t in added}
    wrong = [name for name, _ in spec.added_tokens if found.get(name) != spec.token_id(name)]
    if wrong:
        raise Error(
            f"'{tokenizer}': the added tokens {', '.join(wrong)} do not follow the {spec.text_tokens} text tokens in "
            "the family's order"
        )
