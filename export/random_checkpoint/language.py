"""Random Fun-Audio-Chat checkpoints in the Hugging Face layout: tensors by the released names, and their config.

Deviations are chosen so that the network computes as a trained one does: every layer adds a share to what comes in,
attention picks, logits have gaps, nothing leaves half precision's range. What it says is noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np

from edge_sdk.export.random_checkpoint.draws import Array, RandomTensor
from edge_sdk.export.random_checkpoint.language_config import write_configs
from edge_sdk.export.random_checkpoint.specs import EncoderSpec, LanguageSpec, StackSpec
from edge_sdk.export.random_checkpoint.tokenizer import text_head_gains, write_speech_tokenizer, write_text_tokenizer
from edge_sdk.export.random_checkpoint.writer import Progress, new_folder, write_safetensors

_NORM_STD, _BIAS_STD = 0.15, 0.15
_QUERY_NORM, _KEY_NORM = 1.75, 1.45  # attention scores of deviation 2.5: it picks, and does not fix on one position
_TEXT_LOGIT_STD, _SPEECH_LOGIT_STD = 6.0, 10.0


def write_language_checkpoint(
    directory: str | os.PathLike[str],
    spec: LanguageSpec,
    seed: int,
    *,
    dtype: str = "float32",
    shards: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint folder. The same seed, spec and dtype give the same bytes on every machine.

    Args:
        dtype: of every tensor: "float32", "bfloat16" or "float16". Numbers are drawn in float32 and rounded, so
            checkpoints of one seed differ by that rounding alone.
        shards: safetensors files; from 2 on with an index. Tensors stream to the disk, a few MB at a time.

    Raises:
        ExportError: the folder exists and is not empty, there is not enough space, or it cannot be written.
    """
    with new_folder(directory) as folder:
        write_text_tokenizer(folder, spec)
        write_speech_tokenizer(folder / "speech_tokenizer", spec.speech, spec.group_size)
        write_configs(folder, spec, dtype)
        tensors = list(language_tensors(spec, text_head_gains(folder, spec)))
        write_safetensors(folder, "model", tensors, seed, dtype=dtype, shards=shards, progress=progress)


def language_tensors(spec: LanguageSpec, text_gains: float | Array = 1.0) -> Iterator[RandomTensor]:
    """Every tensor of the checkpoint. `text_gains`: sizes of the text head's rows, see `text_head_gains`."""
    hidden = spec.text.hidden
    yield from _encoder("continuous_audio_tower", spec.encoder, hidden)
    yield from _grouping("audio_tower", spec)
    if spec.head:
        yield from _speech_head("audio_invert_tower", spec, spec.head)
    rows = (spec.vocab_size, hidden)
    logit_std = _TEXT_LOGIT_STD / math.sqrt(hidden)
    embedding = "language_model.model.embed_tokens.weight"
    if spec.tied:
        # Rows that are read as inputs as well keep their size; only those past the tokenizer are zero.
        yield RandomTensor(embedding, rows, logit_std, row_gain=np.sign(text_gains))
    else:
        yield RandomTensor(embedding, rows, 0.6)
        yield RandomTensor("language_model.lm_head.weight", rows, logit_std, row_gain=text_gains)
    yield from _stack("language_model.model", spec.text)


def _encoder(name: str, spec: EncoderSpec, output: int) -> Iterator[RandomTensor]:
    d = spec.d_model
    depth = min(1.0, math.sqrt(2 / spec.layers))  # what layers add in all does not grow with their number
    yield from _conv(f"{name}.conv1", d, spec.n_mels, gain=2.0, bias=0.15)
    yield from _conv(f"{name}.conv2", d, d, gain=2.0, bias=0.12)
    for i in range(spec.layers):
        layer = f"{name}.layers.{i}"
        yield from _layer_norm(f"{layer}.self_attn_layer_norm", d)
        for part in ("q_proj", "v_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", d, d, gain=1.5, bias=_BIAS_STD)
        yield from _linear(f"{layer}.self_attn.k_proj", d, d, gain=1.5)
        yield from _linear(f"{layer}.self_attn.out_proj", d, d, gain=1.5 * depth, bias=_BIAS_STD)
        yield from _layer_norm(f"{layer}.final_layer_norm", d)
        yield from _linear(f"{layer}.fc1", spec.ffn, d, gain=1.5, bias=_BIAS_STD)
        yield from _linear(f"{layer}.fc2", d, spec.ffn, gain=1.5 * depth, bias=_BIAS_STD)
    yield from _layer_norm(f"{name}.ln_post", d)
    yield from _linear(f"{name}.proj", output, d, gain=1.2, bias=_BIAS_STD)
    yield RandomTensor(f"{name}.audio_bos_eos_token.weight", (2, output), 0.5)


def _grouping(name: str, spec: LanguageSpec) -> Iterator[RandomTensor]:
    hidden, speech = spec.text.hidden, spec.speech
    gains = np.ones(speech.size, np.float32)
    gains[speech.eos] = spec.speech_eos_gain
    # The pad row is a row like any other: a rule that reads it must show.
    yield RandomTensor(
        f"{name}.embed_tokens.weight", (speech.size, hidden), _codebook_rms(hidden), row_gain=gains, row_spread=0.25
    )
    yield from _linear(f"{name}.output_matching", hidden, hidden, gain=2.0 / _codebook_rms(hidden))
    yield from _linear(f"{name}.continual_output_matching", hidden, hidden, gain=1.3)


def _speech_head(name: str, spec: LanguageSpec, stack: StackSpec) -> Iterator[RandomTensor]:
    hidden = spec.text.hidden
    yield from _linear(f"{name}.pre_matching", spec.group_size * hidden, hidden, gain=1.0, bias=_BIAS_STD)
    yield from _linear(f"{name}.input_matching", stack.hidden, hidden, gain=1.0)
    yield from _stack(f"{name}.crq_transformer", stack)
    # The codebook is the head's table too: its rows times what comes out here are the speech logits.
    logit_gain = _SPEECH_LOGIT_STD / (_codebook_rms(hidden) * math.sqrt(hidden))
    yield from _linear(f"{name}.output_matching", hidden, stack.hidden, gain=logit_gain)


def _codebook_rms(hidden: int) -> float:
    """Size of a codebook value: about 1 in narrow models, smaller in wide ones, where logits are sums of more."""
    return math.sqrt(8.0 / math.sqrt(hidden))


def _stack(name: str, spec: StackSpec) -> Iterator[RandomTensor]:
    h, d = spec.hidden, spec.head_dim
    depth = min(1.0, math.sqrt(3 / spec.layers))
    for i in range(spec.layers):
        layer = f"{name}.layers.{i}"
        yield _norm(f"{layer}.input_layernorm", h)
        yield from _linear(f"{layer}.self_attn.q_proj", spec.heads * d, h, gain=1.4)
        yield from _linear(f"{layer}.self_attn.k_proj", spec.kv_heads * d, h, gain=1.4)
        yield from _linear(f"{layer}.self_attn.v_proj", spec.kv_heads * d, h, gain=1.4)
        yield from _linear(f"{layer}.self_attn.o_proj", h, spec.heads * d, gain=1.4 * depth)
        yield _norm(f"{layer}.self_attn.q_norm", d, _QUERY_NORM)
        yield _norm(f"{layer}.self_attn.k_norm", d, _KEY_NORM)
        yield _norm(f"{layer}.post_attention_layernorm", h)
        if spec.moe and spec.moe.is_sparse(i):
            yield from _linear(f"{layer}.mlp.gate", spec.moe.experts, h, gain=1.5)
            for e in range(spec.moe.experts):
                yield from _mlp(f"{layer}.mlp.experts.{e}", h, spec.moe.intermediate, depth)
        else:
            yield from _mlp(f"{layer}.mlp", h, spec.intermediate, depth)
    yield _norm(f"{name}.norm", h)


def _mlp(name: str, hidden: int, inner: int, depth: float) -> Iterator[RandomTensor]:
    yield from _linear(f"{name}.gate_proj", inner, hidden, gain=1.4)
    yield from _linear(f"{name}.up_proj", inner, hidden, gain=1.4)
    yield from _linear(f"{name}.down_proj", hidden, inner, gain=1.4 * depth)


def _linear(name: str, outputs: int, inputs: int, *, gain: float, bias: float = 0.0) -> Iterator[RandomTensor]:
    """Input of size 1 gives output of size `gain`. `bias` is its deviation, 0: there is none."""
    yield RandomTensor(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
    if bias:
        yield RandomTensor(f"{name}.bias", (outputs,), bias)


def _conv(name: str, outputs: int, inputs: int, *, gain: float, bias: float) -> Iterator[RandomTensor]:
    yield RandomTensor(f"{name}.weight", (outputs, inputs, 3), gain / math.sqrt(3 * inputs))
    yield RandomTensor(f"{name}.bias", (outputs,), bias)


def _norm(name: str, size: int, mean: float = 1.0) -> RandomTensor:
    return RandomTensor(f"{name}.weight", (size,), _NORM_STD * mean, offset=mean)


def _layer_norm(name: str, size: int) -> Iterator[RandomTensor]:
    yield _norm(name, size)
    yield RandomTensor(f"{name}.bias", (size,), 0.1)
