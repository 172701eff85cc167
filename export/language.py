"""The language half of an export: a checkpoint folder -> its graphs, its text files, its description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_sdk.config import ModelConfig
from edge_sdk.errors import BundleError, CheckpointError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.graphs.backbone import build_backbone
from edge_sdk.export.graphs.blocks import Tensors
from edge_sdk.export.graphs.builder import GraphBuilder
from edge_sdk.export.graphs.encoder import build_encoder
from edge_sdk.export.graphs.speech_head import build_speech_head, build_speech_input
from edge_sdk.export.graphs.speech_head_fused import build_speech_head_fused
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.recipe import Policy
from edge_sdk.export.weights import language_weights
from edge_sdk.prompt import Message, Template
from edge_sdk.tokenizer import Tokenizer


@dataclass(frozen=True)
class LanguagePart:
    """What the bundle takes from a checkpoint."""

    model: ModelConfig
    graphs: dict[str, GraphBuilder]
    tokenizer: str  # tokenizer.json
    chat_template: str
    generation: dict[str, Any]


def load_language(checkpoint: Checkpoint, policy: Policy | None = None) -> LanguagePart:
    """Check a checkpoint completely, then describe its graphs. Weights are read later, when graphs are written.

    Args:
        policy: how linear layers, tables and convolutions are stored; float32 without one.
    Raises:
        CheckpointError: everything that does not fit, in one message.
    """
    config = read_language_config(checkpoint)
    weights = language_weights(config.model, config.tied)
    tokenizer, template = read_text_files(checkpoint, config.model)
    checkpoint.check(weights)  # reads every tensor: last
    tensors = Tensors(weights.required, checkpoint.read, policy or Policy())
    graphs = {
        "encoder": build_encoder(config.model, tensors),
        "backbone": build_backbone(config.model, tensors, tied=config.tied),
    }
    if config.model.speech_head:
        graphs["speech_input"] = build_speech_input(config.model, config.model.speech_head, tensors)
        head = graphs["speech_head"] = build_speech_head(config.model, config.model.speech_head, tensors)
        if config.model.speech_head.moe is None:  # the op has no experts
            fused = build_speech_head_fused(config.model, config.model.speech_head, tensors, head.precision)
            graphs[fused.name] = fused
    return LanguagePart(config.model, graphs, tokenizer, template, config.generation)


def read_text_files(checkpoint: Checkpoint, model: ModelConfig) -> tuple[str, str]:
    """tokenizer.json and the chat template, tried out together."""
    definition = checkpoint.text("tokenizer.json")
    if definition is None:
        raise CheckpointError(f"'{checkpoint.path}' has no tokenizer.json (the fast tokenizer's file)")
    template = checkpoint.text("chat_template.jinja") or _embedded_template(checkpoint)
    try:
        tokenizer = Tokenizer(definition)
        # Rendered once here: a template that fails would else be found after every weight was written.
        Template(template, tokenizer, model).render(
            [Message("system", (("s", True),)), Message("user", (("u", False),))]
        )
    except BundleError as e:
        raise CheckpointError(f"'{checkpoint.path}': {e}") from e
    if tokenizer.vocab_size > model.text_ids.vocab_size:
        raise CheckpointError(
            f"tokenizer.json has ids up to {tokenizer.vocab_size - 1}, config.json a vocabulary of "
            f"{model.text_ids.vocab_size}"
        )
    return definition, template


def _embedded_template(checkpoint: Checkpoint) -> str:
    """Older checkpoints keep the template in a JSON file."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = checkpoint.json(name, required=False).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            if isinstance(named.get("default"), str):
                return str(named["default"])
    raise CheckpointError(
        f"'{checkpoint.path}' has no chat template: neither chat_template.jinja nor one in "
        "chat_template.json or tokenizer_config.json"
    )
