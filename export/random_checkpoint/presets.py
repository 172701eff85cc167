"""Sizes with a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.export.random_checkpoint.specs import (
    ADDED_TOKENS,
    EncoderSpec,
    LanguageSpec,
    SpeechIdSpec,
    StackSpec,
    VocoderSpec,
)


@dataclass(frozen=True)
class Preset:
    """What `--preset` makes: one folder of each kind that is not None."""

    about: str
    language: LanguageSpec | None = None
    vocoder: VocoderSpec | None = None


# The released text tokenizer's added tokens, in the order of their ids, which begin at 151643.
_QWEN3_ADDED = (
    *ADDED_TOKENS[:3],
    *((f"<|{name}|>", True) for name in ("object_ref_start", "object_ref_end", "box_start", "box_end")),
    *((f"<|{name}|>", True) for name in ("quad_start", "quad_end", "vision_start", "vision_end")),
    *((f"<|{name}|>", True) for name in ("vision_pad", "image_pad", "video_pad")),
    *ADDED_TOKENS[3:5],
    *((f"<|{name}|>", False) for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad")),
    *((f"<|{name}|>", False) for name in ("repo_name", "file_sep")),
    ("<tool_response>", False),
    ("</tool_response>", False),
    *ADDED_TOKENS[5:],
)

_TINY = LanguageSpec(
    text=StackSpec(
        hidden=64, layers=3, heads=4, kv_heads=2, head_dim=32, intermediate=160, rope_theta=5e6, max_positions=4096
    ),
    head=StackSpec(hidden=40, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=96, rope_theta=1e6),
    encoder=EncoderSpec(d_model=48, layers=2, heads=4, ffn=96),
    speech=SpeechIdSpec.after(6561),
    text_tokens=936,
    vocab_size=960,
    text_eos_gain=1.4,
    speech_eos_gain=1.3,
    max_new_tokens=40,
)
_TINY_VOCODER = VocoderSpec(
    codes=6561, dim=64, depth=2, heads=2, head_dim=32, lookahead_width=64, base_channels=64, f0_channels=64
)
# Exported in float32 with 1500 columns of noise: 3.2 MB, of which 2.4 MB are weights. With the released codebook of
# 6561 codes and 15000 columns the tables and the noise alone would be past the 5 MB that a package should carry.
_DEMO = LanguageSpec(
    text=StackSpec(hidden=48, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=96, rope_theta=5e6),
    head=StackSpec(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, rope_theta=1e6),
    encoder=EncoderSpec(d_model=32, layers=2, heads=4, ffn=64),
    speech=SpeechIdSpec.after(1024),
    text_tokens=640,
    vocab_size=656,
    text_eos_gain=1.5,
    readable=True,
)
_DEMO_VOCODER = VocoderSpec(
    codes=1024,
    dim=32,
    depth=2,
    heads=2,
    head_dim=16,
    lookahead_width=32,
    base_channels=32,
    f0_channels=32,
    voices=("noise",),
)
_8B = LanguageSpec(
    text=StackSpec(hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=12288, rope_theta=5e6),
    head=StackSpec(hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072, rope_theta=1e6),
    encoder=EncoderSpec(d_model=1280, layers=32, heads=20, ffn=5120),
    speech=SpeechIdSpec.after(6561),
    text_tokens=151643,
    vocab_size=151936,
    added_tokens=_QWEN3_ADDED,
)
_COSYVOICE3 = VocoderSpec(
    codes=6561, dim=1024, depth=22, heads=16, head_dim=64, lookahead_width=1024, base_channels=512, f0_channels=512
)

PRESETS: Mapping[str, Preset] = {
    "tiny": Preset("the test fixtures' sizes, with the real codebook: 7 MB", _TINY, _TINY_VOCODER),
    "demo": Preset("the tests' random bundle's: with a vocoder and a codebook of 1024 in 3 MB", _DEMO, _DEMO_VOCODER),
    "8b": Preset("Fun-Audio-Chat-8B's sizes: 18.8 GB in bfloat16, 37.7 GB in float32", language=_8B),
    "cosyvoice3": Preset("Fun-CosyVoice3-0.5B's flow and waveform part: 1.4 GB", vocoder=_COSYVOICE3),
}
