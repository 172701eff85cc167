"""Which tensors a model needs, by the checkpoint's own names, and which it may carry without use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.config import EncoderConfig, ModelConfig, TransformerConfig

ENCODER = "continuous_audio_tower"
GROUPING = "audio_tower"
HEAD = "audio_invert_tower"
HEAD_STACK = f"{HEAD}.crq_transformer"
BACKBONE = "language_model.model"
TEXT_EMBEDDING = f"{BACKBONE}.embed_tokens.weight"
TEXT_HEAD = "language_model.lm_head.weight"
CODEBOOK = f"{GROUPING}.embed_tokens.weight"
GROUP_PROJECTION = f"{GROUPING}.output_matching.weight"
AUDIO_PROJECTION = f"{GROUPING}.continual_output_matching.weight"

Shapes = dict[str, tuple[int, ...]]


def shared_tables(tied: bool) -> dict[str, str]:
    """Tensors that are another one under a second name, which some writers store as well.

    Args:
        tied: the text head is the text embedding.
    """
    found = {f"{HEAD}.lm_head.weight": CODEBOOK}
    if tied:
        found[TEXT_HEAD] = TEXT_EMBEDDING
    return found


@dataclass(frozen=True)
class Weights:
    """`required` must all be there; `unused` may be, and is then checked for shape and left out of the bundle."""

    required: Shapes
    unused: Shapes


def language_weights(model: ModelConfig, tied: bool) -> Weights:
    """Tensors of encoder, grouping, backbone and speech head.

    Args:
        tied: the text head is the text embedding.
    """
    hidden, text = model.backbone.hidden_size, model.text_ids
    codes = model.speech_ids.codebook_size
    required: Shapes = dict(_encoder(model.encoder, hidden))
    required[CODEBOOK] = (codes, hidden)
    required[GROUP_PROJECTION] = (hidden, hidden)
    required[AUDIO_PROJECTION] = (hidden, hidden)
    required[TEXT_EMBEDDING] = (text.vocab_size, hidden)
    required.update(_stack(BACKBONE, model.backbone))
    unused: Shapes = {
        # In checkpoints, never read by the reference.
        f"{ENCODER}.audio_bos_eos_token.weight": (2, hidden),
        **{name: required[table] for name, table in shared_tables(tied).items()},
    }
    if not tied:
        required[TEXT_HEAD] = (text.vocab_size, hidden)
    if model.speech_head:
        width = model.speech_head.hidden_size
        required[f"{HEAD}.pre_matching.weight"] = (model.group_size * hidden, hidden)
        required[f"{HEAD}.pre_matching.bias"] = (model.group_size * hidden,)
        required[f"{HEAD}.input_matching.weight"] = (width, hidden)
        required[f"{HEAD}.output_matching.weight"] = (hidden, width)
        required.update(_stack(HEAD_STACK, model.speech_head))
    return Weights(required, unused)


def _encoder(config: EncoderConfig, output_dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, f = config.d_model, config.ffn_dim
    yield from {
        f"{ENCODER}.conv1.weight": (d, config.n_mels, 3),
        f"{ENCODER}.conv1.bias": (d,),
        f"{ENCODER}.conv2.weight": (d, d, 3),
        f"{ENCODER}.conv2.bias": (d,),
        f"{ENCODER}.ln_post.weight": (d,),
        f"{ENCODER}.ln_post.bias": (d,),
        f"{ENCODER}.proj.weight": (output_dim, d),
        f"{ENCODER}.proj.bias": (output_dim,),
    }.items()
    for i in range(config.num_layers):
        p = f"{ENCODER}.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{p}.self_attn.{name}.weight", (d, d)
            if name != "k_proj":
                yield f"{p}.self_attn.{name}.bias", (d,)
        yield f"{p}.fc1.weight", (f, d)
        yield f"{p}.fc1.bias", (f,)
        yield f"{p}.fc2.weight", (d, f)
        yield f"{p}.fc2.bias", (d,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield f"{p}.{norm}.weight", (d,)
            yield f"{p}.{norm}.bias", (d,)


def _stack(prefix: str, config: TransformerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, d = config.hidden_size, config.head_dim
    yield f"{prefix}.norm.weight", (h,)
    for i in range(config.num_layers):
        p = f"{prefix}.layers.{i}"
        yield f"{p}.self_attn.q_proj.weight", (config.num_heads * d, h)
        yield f"{p}.self_attn.k_proj.weight", (config.num_kv_heads * d, h)
        yield f"{p}.self_attn.v_proj.weight", (config.num_kv_heads * d, h)
        yield f"{p}.self_attn.o_proj.weight", (h, config.num_heads * d)
        yield f"{p}.self_attn.q_norm.weight", (d,)
        yield f"{p}.self_attn.k_norm.weight", (d,)
        yield f"{p}.input_layernorm.weight", (h,)
        yield f"{p}.post_attention_layernorm.weight", (h,)
        if config.moe and i in config.moe.sparse_layers:
            yield f"{p}.mlp.gate.weight", (config.moe.num_experts, h)
            for e in range(config.moe.num_experts):
                yield from _mlp(f"{p}.mlp.experts.{e}", h, config.moe.intermediate_size)
        else:
            yield from _mlp(f"{p}.mlp", h, config.intermediate_size)


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)
