"""config.json and its neighbours -> ModelConfig. What the graphs cannot compute is refused here, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_sdk.config import EncoderConfig, MelConfig, ModelConfig, MoEConfig, SpeechIds, TextIds, TransformerConfig
from edge_sdk.errors import BundleError, CheckpointError, Error
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.mel import MelStream

MODEL_TYPE = "funaudiochat"
TEXT_MODEL_TYPES = ("qwen3", "qwen3_moe")


@dataclass(frozen=True)
class LanguageConfig:
    """The device's ModelConfig and what only the exporter needs."""

    model: ModelConfig
    tied: bool  # the text head is the text embedding
    generation: dict[str, Any]  # generation_config.json


class _Reader:
    """Typed access to one config object; collects nothing, fails with the full key."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        self.value, self.where = value, where

    def section(self, key: str) -> _Reader:
        found = self.value.get(key)
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.where}: '{key}' must be an object, found {found!r}")
        return _Reader(found, f"{self.where}.{key}")

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        found = self.value.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or found < minimum:
            raise CheckpointError(f"{self.where}: '{key}' must be an integer of at least {minimum}, found {found!r}")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self.value.get(key, default)
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 < found < math.inf:
            raise CheckpointError(f"{self.where}: '{key}' must be a number above 0, found {found!r}")
        return float(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self.value.get(key, default)
        if not isinstance(found, bool):
            raise CheckpointError(f"{self.where}: '{key}' must be true or false, found {found!r}")
        return found

    def expect(self, key: str, *allowed: Any) -> Any:
        """The value if it is one of `allowed`; an absent key counts as the first."""
        found = self.value.get(key, allowed[0])
        if found not in allowed:
            raise CheckpointError(
                f"{self.where}: '{key}' is {found!r}, supported is {' or '.join(repr(a) for a in allowed)}"
            )
        return found

    def token_id(self, key: str, size: int) -> int:
        found = self.integer(key, minimum=0)
        if found >= size:
            raise CheckpointError(f"{self.where}: '{key}' is {found}, outside the vocabulary of {size}")
        return found


def read_language_config(checkpoint: Checkpoint) -> LanguageConfig:
    """Read and check every configuration file of the language half.

    Raises:
        CheckpointError: the key, its value, and what is supported.
    """
    top = _Reader(checkpoint.json("config.json"), "config.json")
    if top.value.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"config.json: model_type is {top.value.get('model_type')!r}, this exporter reads '{MODEL_TYPE}'"
        )
    text, audio = top.section("text_config"), top.section("audio_config")
    generation = checkpoint.json("generation_config.json", required=False)
    _check_generation(generation)
    backbone = _transformer(text)
    text_ids = _text_ids(top, text, generation)
    speech_ids = _speech_ids(audio)
    group_size = audio.integer("group_size")
    _check_group_size(checkpoint, group_size)
    if audio.integer("output_dim") != backbone.hidden_size:
        raise CheckpointError(
            f"config.json: audio_config.output_dim {audio.value['output_dim']} is not text_config.hidden_size "
            f"{backbone.hidden_size}; encoder rows take the place of text embeddings and must be as wide"
        )
    head = None
    if audio.flag("enable_audio_invert_tower", True):
        head = _transformer(audio.section("crq_transformer_config"))
    model = ModelConfig(
        group_size=group_size,
        mel=_mel(checkpoint, audio.integer("num_mel_bins")),
        encoder=_encoder(audio),
        backbone=backbone,
        speech_head=head,
        text_ids=text_ids,
        speech_ids=speech_ids,
        audio_features_mode=audio.expect("continuous_features_mode", "replace", "add"),
    )
    tied = text.flag("tie_word_embeddings", top.flag("tie_word_embeddings", False))
    return LanguageConfig(model, tied, generation)


def _transformer(c: _Reader) -> TransformerConfig:
    model_type = c.expect("model_type", *TEXT_MODEL_TYPES)
    c.expect("hidden_act", "silu")
    c.expect("attention_bias", False)
    c.expect("use_sliding_window", False)
    kinds = c.value.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"{c.where}: layer_types {kinds!r} is not supported, only full_attention in every layer")
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    kv_heads = c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{c.where}: {heads} attention heads do not divide into {kv_heads} key/value heads")
    head_dim = c.integer("head_dim", 128 if model_type == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"{c.where}: head_dim {head_dim} is odd; rotary embedding needs an even one")
    layers = c.integer("num_hidden_layers")
    return TransformerConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=c.integer("intermediate_size"),
        rms_norm_eps=c.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(c),
        moe=_moe(c, layers) if model_type == "qwen3_moe" else None,
    )


def _rope_theta(c: _Reader) -> float:
    # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
    c.expect("partial_rotary_factor", 1.0)
    if c.value.get("rope_parameters") is not None:
        inner = c.section("rope_parameters")
        inner.expect("rope_type", "default")
        inner.expect("partial_rotary_factor", 1.0)
        return inner.number("rope_theta", 10000.0)
    if c.value.get("rope_scaling"):
        scaling = c.section("rope_scaling")
        if scaling.value.get("rope_type", scaling.value.get("type")) != "default":
            raise CheckpointError(
                f"{c.where}: rope_scaling {scaling.value!r} is not supported, only plain rotary embedding"
            )
    return c.number("rope_theta", 10000.0)


def _moe(c: _Reader, layers: int) -> MoEConfig:
    experts, active = c.integer("num_experts", 128), c.integer("num_experts_per_tok", 8)
    if active > experts:
        raise CheckpointError(f"{c.where}: num_experts_per_tok {active} exceeds num_experts {experts}")
    step = c.integer("decoder_sparse_step", 1)
    dense = c.value.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise CheckpointError(f"{c.where}: mlp_only_layers must be a list of layer numbers, found {dense!r}")
    return MoEConfig(
        num_experts=experts,
        experts_per_token=active,
        intermediate_size=c.integer("moe_intermediate_size", 768),
        normalize_weights=c.flag("norm_topk_prob", False),
        sparse_layers=tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0),
    )


def _encoder(c: _Reader) -> EncoderConfig:
    c.expect("activation_function", "gelu")
    d_model, heads = c.integer("d_model"), c.integer("encoder_attention_heads")
    if d_model % heads or d_model % 2 or d_model < 4:
        raise CheckpointError(f"{c.where}: d_model {d_model} must be even, at least 4, and divide into {heads} heads")
    n_window, positions = c.integer("n_window"), c.integer("max_source_positions", 1500)
    if n_window > positions:
        raise CheckpointError(f"{c.where}: n_window {n_window} exceeds max_source_positions {positions}")
    return EncoderConfig(
        d_model=d_model,
        # Whisper's name for the same number is accepted where the first is absent.
        num_layers=c.integer("encoder_layers", c.value.get("num_hidden_layers")),
        num_heads=heads,
        ffn_dim=c.integer("encoder_ffn_dim"),
        n_mels=c.integer("num_mel_bins"),
        n_window=n_window,
    )


def _mel(checkpoint: Checkpoint, n_mels: int) -> MelConfig:
    p = _Reader(checkpoint.json("preprocessor_config.json"), "preprocessor_config.json")
    if p.integer("feature_size", n_mels) != n_mels:
        raise CheckpointError(
            f"preprocessor_config.json: feature_size {p.value['feature_size']} is not num_mel_bins {n_mels}"
        )
    p.expect("dither", 0.0)
    rate = p.integer("sampling_rate", 16000)
    config = MelConfig(
        n_mels=n_mels,
        n_fft=p.integer("n_fft", 400, minimum=2),
        hop_samples=p.integer("hop_length", 160),
        sample_rate=rate,
        max_samples=p.integer("n_samples", p.integer("chunk_length", 30) * rate),
    )
    try:
        MelStream(config)
    except Error as e:
        raise CheckpointError(f"preprocessor_config.json: {e}") from e
    return config


def _text_ids(top: _Reader, text: _Reader, generation: Mapping[str, Any]) -> TextIds:
    size = text.integer("vocab_size")
    eos = generation.get("eos_token_id", text.value.get("eos_token_id"))
    eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not eos_ids or not all(isinstance(e, int) and not isinstance(e, bool) and 0 <= e < size for e in eos_ids):
        raise CheckpointError(f"eos_token_id {eos!r} is not a list of ids inside the vocabulary of {size}")
    return TextIds(
        vocab_size=size,
        eos=eos_ids,
        audio_bos=text.token_id("audio_bos_index", size),
        audio_eos=text.token_id("audio_eos_index", size),
        audio=top.token_id("audio_token_index", size),
        sil=text.token_id("sil_index", size) if text.value.get("sil_index") is not None else None,
    )


def _speech_ids(audio: _Reader) -> SpeechIds:
    size = audio.integer("codebook_size")
    return SpeechIds(
        codebook_size=size,
        bos=audio.token_id("bos_token_id", size),
        eos=audio.token_id("eos_token_id", size),
        pad=audio.token_id("pad_token_id", size),
    )


def _check_generation(generation: dict[str, Any]) -> None:
    """What the device will read of it, while there is somebody who can change it."""
    from edge_sdk.generation import GenerationConfig

    try:
        GenerationConfig.of_section(generation, "generation_config.json")
    except BundleError as e:
        raise CheckpointError(str(e)) from e


def _check_group_size(checkpoint: Checkpoint, group_size: int) -> None:
    # The processor counts placeholders with this number, the model groups with its own: they must agree.
    for name in ("speech_tokenizer/tokenizer_config.json", "processor_config.json"):
        found = checkpoint.json(name, required=False).get("audio_group_size")
        if found is None:
            continue
        if found != group_size:
            raise CheckpointError(f"{name}: audio_group_size is {found!r}, config.json has group_size {group_size}")
        return
