"""The vocoder's mel in torch: 80 bins, natural logarithm, 50 frames a second (cosyvoice3.yaml's `feat_extractor`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edge_sdk.mel import slaney_filters
from samples.nano.settings import Sound

FLOOR = 1e-5  # smallest magnitude that the logarithm sees
_UNDER_ROOT = 1e-9


def vocoder_mel(pcm: Tensor, sound: Sound) -> Tensor:
    """pcm [B, N] at 24 kHz, N whole frames -> float32 [B, n_mels, N / hop]: a frame lies in the middle of its window,
    edges are mirrored."""
    n_fft, hop = sound.n_fft, sound.hop_samples
    side = (n_fft - hop) // 2
    padded = functional.pad(pcm[:, None], (side, side), mode="reflect")[:, 0]
    magnitude = stft_magnitude(padded, n_fft, hop)
    filters = mel_filters(sound.n_mels, n_fft, sound.output_rate_hz).to(pcm.device)
    return torch.log((filters @ magnitude).clamp(min=FLOOR))


def stft_magnitude(pcm: Tensor, n_fft: int, hop: int) -> Tensor:
    """[B, N] -> [B, n_fft / 2 + 1, frames], under a periodic Hann window, nothing added at the edges."""
    window = torch.hann_window(n_fft, device=pcm.device)
    spectrum = torch.stft(pcm, n_fft, hop, window=window, center=False, return_complex=True)
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + _UNDER_ROOT)


@lru_cache(maxsize=16)
def mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Slaney's filters as a matrix, float32 [n_mels, n_fft / 2 + 1]."""
    run, rise, fall = slaney_filters(n_mels, n_fft, sample_rate)
    filters = np.zeros((n_mels + 2, len(run)))
    bins = np.arange(len(run))
    filters[run + 1, bins] += rise  # filter m in row m + 1, one row to spare at each end
    filters[run, bins] += fall
    return torch.from_numpy(filters[1:-1].astype(np.float32))
