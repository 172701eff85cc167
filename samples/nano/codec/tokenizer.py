"""The speech tokenizer: the reply voice's sound -> 25 codes a second, by finite scalar quantization.

The encoder hears the vocoder's mel, f0 and voicing; f0 of sound whose synthesizer does not tell is heard by a small
head of its own. The decoder is there for training: the flow takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from samples.nano.codec.files import load_model, save_model
from samples.nano.codec.mel import vocoder_mel
from samples.nano.codec.quantizer import Quantizer
from samples.nano.settings import CodecSize, Settings, Sound

MODEL_NAME = "codec"
MIDDLE_HZ = 200.0  # f0 is learnt as its logarithm over this
_EXPANSION = 3
_GATE = 0.3  # of a residual branch at first
_SPREAD = 4.0  # of the last convolution of the encoder at first: else every sound is the code in the middle
_PITCH = 2  # channels beside the mel: log f0 and voicing
_MEL_MIDDLE, _MEL_SPREAD = -6.0, 3.0  # about the mean and the deviation of a speech mel, so that inputs are near 1

Array = np.ndarray[Any, Any]


class Tokenizer(nn.Module):
    """Encoder and decoder around a quantizer. `frames_per_token` must be 2: one stride on each side."""

    def __init__(self, size: CodecSize, sound: Sound) -> None:
        super().__init__()
        self.size, self.sound = size, sound
        self.quantizer = Quantizer(size.levels)
        mels, width = sound.n_mels, size.width
        self.pitch = nn.Sequential(nn.Conv1d(mels, width, 5, padding=2), Residual(width), nn.Conv1d(width, _PITCH, 1))
        self.encoder = nn.Sequential(
            nn.Conv1d(mels + _PITCH, width, 5, padding=2),
            *(Residual(width) for _ in range(size.blocks)),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
            *(Residual(width) for _ in range(size.blocks)),
            nn.Conv1d(width, len(size.levels), 1),
        )
        with torch.no_grad():
            self.encoder[-1].weight *= _SPREAD
        self.decoder = nn.Sequential(
            nn.Conv1d(len(size.levels), width, 3, padding=1),
            *(Residual(width) for _ in range(2 * size.blocks)),
            nn.ConvTranspose1d(width, width, 4, stride=2, padding=1),
            *(Residual(width) for _ in range(size.blocks)),
            nn.Conv1d(width, mels + _PITCH, 1),
        )

    def heard(self, mel: Tensor) -> Tensor:
        """mel [B, n_mels, L] -> [B, 2, L]: log f0 over MIDDLE_HZ, and voicing's logit."""
        found: Tensor = self.pitch(normalized(mel))
        return found

    def encode(self, mel: Tensor, pitch: Tensor) -> Tensor:
        """mel [B, n_mels, L], pitch [B, 2, L] (`pitch_channels`), L even -> quantized [B, L / 2, D]."""
        wide = self.encoder[:-1](torch.cat([normalized(mel), pitch], dim=1))
        with _exact(wide):
            return self.quantizer.quantize(self.encoder[-1](wide.float()).transpose(1, 2))

    def decode(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> (mel [B, n_mels, 2T], pitch as `heard` gives it [B, 2, 2T])."""
        wide = self.decoder[:-1](quantized.transpose(1, 2))
        with _exact(wide):
            mel, pitch = self.decoder[-1](wide.float()).split([self.sound.n_mels, _PITCH], dim=1)
        return mel * _MEL_SPREAD + _MEL_MIDDLE, pitch

    @torch.no_grad()
    def codes(self, pcm: Array, f0_hz: Array | None = None) -> Array:
        """PCM float32 [N] at 24 kHz -> codes int64 [T], 25 a second; the last is filled up with silence.

        Args:
            f0_hz: [frames] of 20 ms, 0 where there is no voice, if the synthesizer told it.
        """
        token_samples = self.sound.hop_samples * self.sound.frames_per_token
        filled = np.pad(np.asarray(pcm, np.float32), (0, -len(pcm) % token_samples))
        if not len(filled):
            return np.empty(0, np.int64)
        mel = vocoder_mel(torch.from_numpy(filled)[None], self.sound)
        if f0_hz is None:
            pitch = certain(self.heard(mel))
        else:
            f0 = np.zeros(mel.shape[2], np.float32)
            f0[: len(f0_hz)] = f0_hz[: len(f0)]
            pitch = pitch_channels(torch.from_numpy(f0)[None])
        found: Array = self.quantizer.encode(self.encode(mel, pitch))[0].numpy()
        return found

    def save(self, folder: Path, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        """codec.safetensors and codec.json."""
        sizes = {"levels": list(self.size.levels), "width": self.size.width, "blocks": self.size.blocks}
        save_model(folder, MODEL_NAME, self, {"name": settings.name, **sizes}, dtype)

    @classmethod
    def load(cls, folder: Path, sound: Sound) -> Tokenizer:
        """Raises Error for files that are not there or do not fit each other."""

        def build(sizes: dict[str, Any]) -> Tokenizer:
            return cls(CodecSize(tuple(sizes["levels"]), sizes["width"], sizes["blocks"]), sound)

        return load_model(folder, MODEL_NAME, build)


@dataclass(frozen=True)
class SoundBatch:
    """mel [B, n_mels, L], f0 [B, L] in Hz (0: no voice)."""

    mel: Tensor
    f0_hz: Tensor


class Residual(nn.Module):
    """ConvNeXt's block, [B, C, L] -> the same: a wide convolution channel by channel, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, _EXPANSION * width), nn.Linear(_EXPANSION * width, width)
        self.gate = nn.Parameter(torch.full((width,), _GATE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.gate * self.narrow(functional.gelu(self.widen(y)))).transpose(1, 2)


def _exact(x: Tensor) -> torch.autocast:
    """Float32 in it: what is rounded to a level, and the mel whose errors are counted, are not to be bfloat16's."""
    return torch.autocast(x.device.type, enabled=False)


def normalized(mel: Tensor) -> Tensor:
    return (mel - _MEL_MIDDLE) / _MEL_SPREAD


def pitch_channels(f0_hz: Tensor) -> Tensor:
    """f0 [B, L] in Hz, 0 where there is no voice -> [B, 2, L]: log f0 over MIDDLE_HZ (0 there), voicing (0 or 1)."""
    voiced = f0_hz > 0
    log = torch.where(voiced, torch.log(f0_hz.clamp(min=1.0) / MIDDLE_HZ), 0.0)
    return torch.stack([log, voiced.float()], dim=1)


def certain(pitch: Tensor) -> Tensor:
    """What `heard` or the decoder believes, as `pitch_channels` would say it."""
    voiced = (pitch[:, 1] > 0).float()
    return torch.stack([pitch[:, 0] * voiced, voiced], dim=1)


def tokenizer_loss(model: Tokenizer, batch: SoundBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mel L1, log f0 L1 in voiced frames, voicing; the pitch head's beside them.

    Every other item is encoded with the pitch that the head heard, so that both ways of asking for codes are trained.
    """
    mel, truth = batch.mel, pitch_channels(batch.f0_hz)
    heard = model.heard(mel)
    told = torch.arange(len(mel), device=mel.device)[:, None, None] % 2 == 0
    quantized = model.encode(mel, torch.where(told, truth, certain(heard.detach())))
    decoded, pitch = model.decode(quantized)
    mel_loss = (decoded - mel).abs().mean()
    pitch_loss, heard_loss = (_pitch_loss(guess, truth) for guess in (pitch, heard))
    return mel_loss + pitch_loss + heard_loss, {"mel": mel_loss, "pitch": pitch_loss, "heard": heard_loss}


def _pitch_loss(guess: Tensor, truth: Tensor) -> Tensor:
    voiced = truth[:, 1]
    log = ((guess[:, 0] - truth[:, 0]).abs() * voiced).sum() / voiced.sum().clamp(min=1)
    return log + 0.1 * functional.binary_cross_entropy_with_logits(guess[:, 1], voiced)
