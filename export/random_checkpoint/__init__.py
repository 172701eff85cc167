"""Seeded random checkpoints of exactly this model family: for tests, their random bundle, and full-size export trials.

NumPy and tokenizers only. Bytes are told by (spec, seed) alone; see `draws`.
"""

from __future__ import annotations

from edge_sdk.export.random_checkpoint.language import write_language_checkpoint
from edge_sdk.export.random_checkpoint.presets import PRESETS, Preset
from edge_sdk.export.random_checkpoint.specs import (
    EncoderSpec,
    LanguageSpec,
    MoESpec,
    SpeechIdSpec,
    StackSpec,
    VocoderSpec,
)
from edge_sdk.export.random_checkpoint.vocoder import write_vocoder_checkpoint

__all__ = [
    "PRESETS",
    "EncoderSpec",
    "LanguageSpec",
    "MoESpec",
    "Preset",
    "SpeechIdSpec",
    "StackSpec",
    "VocoderSpec",
    "write_language_checkpoint",
    "write_vocoder_checkpoint",
]
