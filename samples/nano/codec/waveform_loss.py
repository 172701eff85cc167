"""What the waveform part learns from: spectra at several resolutions, the mel, and the synthesizer's f0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samples.nano.codec.mel import FLOOR, mel_filters, stft_magnitude, vocoder_mel
from samples.nano.codec.waveform import Waveform
from samples.nano.settings import Sound

RESOLUTIONS = ((2048, 480), (1024, 240), (512, 120), (256, 60))  # (n_fft, hop)
_LOG_FLOOR = 1e-3
_BINS_PER_MEL, _MOST_MELS = 8, 80
_F0_SCALE_HZ = 100.0  # an error of this much counts 1


@dataclass(frozen=True)
class WaveBatch:
    """pcm [B, N] at 24 kHz, its mel [B, n_mels, L], f0 [B, L] in Hz as the synthesizer had it (0: no voice)."""

    pcm: Tensor
    mel: Tensor
    f0_hz: Tensor


def waveform_loss(model: Waveform, batch: WaveBatch, sound: Sound) -> tuple[Tensor, dict[str, Tensor]]:
    """Spectral losses and f0. The excitation is made of the true f0; the last frames, whose right context was cut off,
    do not count. In float32 on every device: errors of f0 and phase add up over a reply."""
    c = model.config
    with torch.autocast(batch.pcm.device.type, enabled=False):
        noise = torch.rand(*batch.pcm.shape, c.harmonics + 1, device=batch.pcm.device)
        made = model.trunk(batch.mel, model.source(batch.f0_hz, noise))
        kept = (batch.mel.shape[2] - c.lookahead_frames) * c.samples_per_frame
        spectral = spectral_loss(made[:, :kept], batch.pcm[:, :kept], sound)
        f0_hz = (model.f0(batch.mel) - batch.f0_hz)[:, : -c.lookahead_frames].abs().mean()
        return spectral + f0_hz / _F0_SCALE_HZ, {"spectral": spectral, "f0_hz": f0_hz}


def spectral_loss(made: Tensor, true: Tensor, sound: Sound) -> Tensor:
    """[B, N] each. At each resolution log magnitudes, spectral convergence (0 to 1), log mels; the vocoder's mel."""
    total = (vocoder_mel(made, sound) - vocoder_mel(true, sound)).abs().mean()
    for n_fft, hop in RESOLUTIONS:
        a, b = (stft_magnitude(pcm, n_fft, hop) for pcm in (made, true))
        log = (torch.log(a + _LOG_FLOOR) - torch.log(b + _LOG_FLOOR)).abs().mean()
        # Over both norms: over the true one alone (as usually) a loud beginning throws training out for good.
        norms = torch.linalg.vector_norm(a) + torch.linalg.vector_norm(b)
        convergence = torch.linalg.vector_norm(a - b) / norms.clamp(min=_LOG_FLOOR)
        filters = mel_filters(min(_MOST_MELS, n_fft // _BINS_PER_MEL), n_fft, sound.output_rate_hz).to(made.device)
        mel = (torch.log(filters @ a + FLOOR) - torch.log(filters @ b + FLOOR)).abs().mean()
        total = total + (log + convergence + mel) / len(RESOLUTIONS)
    return total
