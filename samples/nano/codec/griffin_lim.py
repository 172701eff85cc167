"""Sound from a mel without any training (Griffin and Lim's iteration, with momentum): what a mel holds can be heard
apart from what the waveform part makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from samples.nano.codec.mel import mel_filters
from samples.nano.settings import Sound

_ITERATIONS, _MOMENTUM = 32, 0.99


def griffin_lim(mel: Tensor, sound: Sound) -> Tensor:
    """mel [n_mels, L] as `vocoder_mel` gives it -> PCM [L * hop]. The same mel gives the same sound."""
    n_fft, hop = sound.n_fft, sound.hop_samples
    filters = mel_filters(sound.n_mels, n_fft, sound.output_rate_hz)
    magnitude = (torch.linalg.pinv(filters) @ mel.exp()).clamp(min=0)
    window = torch.hann_window(n_fft)
    draws = torch.Generator().manual_seed(0)
    # The iteration's frames are centred on multiples of the hop, the mel's half a hop later.
    angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=draws)
    spectrum, before = torch.polar(magnitude, angle), torch.zeros_like(magnitude, dtype=torch.complex64)
    length = (magnitude.shape[1] - 1) * hop
    for _ in range(_ITERATIONS):
        pcm = torch.istft(spectrum, n_fft, hop, window=window, length=length)
        found = torch.stft(pcm, n_fft, hop, window=window, return_complex=True)
        ahead = found - _MOMENTUM / (1 + _MOMENTUM) * before
        before = found
        spectrum = torch.polar(magnitude, ahead.angle())
    pcm = torch.istft(spectrum, n_fft, hop, window=window, length=length)
    return torch.nn.functional.pad(pcm, (hop // 2, hop - hop // 2))
