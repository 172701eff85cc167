"""The JSON files of a language checkpoint, with the released checkpoint's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_sdk.export.random_checkpoint.specs import EncoderSpec, LanguageSpec, StackSpec
from edge_sdk.export.random_checkpoint.writer import write_json

_RMS_NORM_EPS = 1e-6
_TRANSFORMERS = "4.52.3"  # the version whose layout this is


def write_configs(folder: Path, spec: LanguageSpec, dtype: str) -> None:
    """config.json, generation_config.json, preprocessor_config.json and processor_config.json."""
    write_json(folder / "config.json", language_config(spec, dtype))
    write_json(folder / "generation_config.json", _generation_config(spec))
    write_json(folder / "preprocessor_config.json", _preprocessor_config(spec.encoder))
    write_json(folder / "processor_config.json", _processor_config(spec))


def language_config(spec: LanguageSpec, dtype: str) -> dict[str, Any]:
    """The content of config.json."""
    audio, speech = spec.encoder, spec.speech
    head: dict[str, Any] = {}
    if spec.head:
        head["crq_transformer_config"] = {
            **_stack_config(spec.head, spec.vocab_size, dtype),
            "tie_word_embeddings": True,
        }
    return {
        "architectures": ["FunAudioChatForConditionalGeneration"],
        "model_type": "funaudiochat",
        "audio_config": {
            "model_type": "funaudiochat_audio_encoder",
            "activation_dropout": 0,
            "activation_function": "gelu",
            "attention_dropout": 0,
            "bos_token_id": speech.bos,
            "codebook_size": speech.size,
            "continuous_features_mode": spec.features_mode,
            **head,
            "d_model": audio.d_model,
            "dropout": 0,
            "enable_audio_invert_tower": spec.head is not None,
            "encoder_attention_heads": audio.heads,
            "encoder_ffn_dim": audio.ffn,
            "encoder_layers": audio.layers,
            "eos_token_id": speech.eos,
            "group_size": spec.group_size,
            "initializer_range": 0.02,
            "max_source_positions": audio.max_positions,
            "n_window": audio.n_window,
            "num_hidden_layers": audio.layers,
            "num_mel_bins": audio.n_mels,
            "output_dim": spec.text.hidden,
            "pad_token_id": speech.pad,
            "scale_embedding": False,
            "torch_dtype": dtype,
        },
        "audio_token_index": spec.token_id("<|AUDIO|>"),
        "hidden_size": spec.text.hidden,
        "ignore_index": -100,
        "text_config": {
            **_stack_config(spec.text, spec.vocab_size, dtype),
            "audio_bos_index": spec.token_id("<|audio_bos|>"),
            "audio_eos_index": spec.token_id("<|audio_eos|>"),
            "bos_token_id": spec.token_id("<|endoftext|>"),
            "eos_token_id": spec.token_id("<|im_end|>"),
            "pad_token_id": spec.token_id("<|endoftext|>"),
            "sil_index": spec.token_id("<|sil|>"),
            "tie_word_embeddings": spec.tied,
        },
        "tie_word_embeddings": spec.tied,
        "torch_dtype": dtype,
        "transformers_version": _TRANSFORMERS,
    }


def _stack_config(spec: StackSpec, vocab_size: int, dtype: str) -> dict[str, Any]:
    moe: dict[str, Any] = {}
    if spec.moe:
        moe = {
            "decoder_sparse_step": spec.moe.sparse_step,
            "mlp_only_layers": list(spec.moe.dense_layers),
            "moe_intermediate_size": spec.moe.intermediate,
            "norm_topk_prob": spec.moe.normalize,
            "num_experts": spec.moe.experts,
            "num_experts_per_tok": spec.moe.experts_per_token,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": spec.intermediate,
        "max_position_embeddings": spec.max_positions,
        "max_window_layers": spec.layers,
        "model_type": "qwen3_moe" if spec.moe else "qwen3",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": _RMS_NORM_EPS,
        "rope_scaling": None,
        "rope_theta": spec.rope_theta,
        "sliding_window": None,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
        **moe,
    }


def _generation_config(spec: LanguageSpec) -> dict[str, Any]:
    return {
        "bos_token_id": spec.token_id("<|endoftext|>"),
        "eos_token_id": spec.token_id("<|im_end|>"),
        "max_new_tokens": spec.max_new_tokens,
        "pad_token_id": spec.token_id("<|endoftext|>"),
        "transformers_version": _TRANSFORMERS,
    }


def _preprocessor_config(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "chunk_length": 30,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": spec.n_mels,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def _processor_config(spec: LanguageSpec) -> dict[str, Any]:
    return {
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_group_size": spec.group_size,
        "audio_pad_token": "<|audio_pad|>",
        "audio_token": "<|AUDIO|>",
        "processor_class": "FunAudioChatProcessor",
    }
