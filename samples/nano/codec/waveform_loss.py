"""What the waveform part learns from: spectra at several resolutions, the mel, and the synthesizer's pitch and phase.

The synthesizer filters a train of pulses. Where the excitation has the phase of those pulses, the sound of a voice is
nearly a function of mel and excitation, and an error of complex spectra says where to go; at run time any phase is as
good, since only the excitation tells it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samples.nano.codec.mel import mel_filters, vocoder_mel
from samples.nano.codec.waveform import Waveform, exact
from samples.nano.settings import Sound

RESOLUTIONS = ((1024, 240), (512, 120), (256, 60))  # (n_fft, hop)
PHASE_SHARE = 1.0  # of the complex spectra's error in the loss
EARLY_SAMPLES = 24  # so much earlier than in the sound are the excitation's pulses: the convolutions are causal
_LOG_FLOOR = 1e-3  # added to magnitudes: below it is silence, whose errors would drown all others'
_UNDER_ROOT = 1e-9
_BINS_PER_MEL, _MOST_MELS = 8, 80
_F0_SCALE_HZ = 100.0  # an error of this much counts 1


@dataclass(frozen=True)
class WaveBatch:
    """pcm [B, N] at 24 kHz, its mel [B, n_mels, L], f0 [B, L] in Hz as the synthesizer had it (0: no voice), and turns
    [B, N]: of its pulses, EARLY_SAMPLES later."""

    pcm: Tensor
    mel: Tensor
    f0_hz: Tensor
    turns: Tensor


def waveform_loss(model: Waveform, batch: WaveBatch, sound: Sound) -> tuple[Tensor, dict[str, Tensor]]:
    """Spectral losses and f0. The excitation is made of the true f0; the last frames, whose right context was cut off,
    do not count. Only convolutions are quick and rough where autocast is on."""
    c = model.config
    noise = torch.rand(*batch.pcm.shape, c.harmonics + 1, device=batch.pcm.device)
    with exact(batch.pcm):
        source = model.aligned_source(batch.turns, batch.f0_hz, noise)
    made = model.trunk(batch.mel, source)
    kept = (batch.mel.shape[2] - c.lookahead_frames) * c.samples_per_frame
    guess = model.f0(batch.mel)
    with exact(batch.pcm):
        spectral, phase = spectral_losses(made[:, :kept], batch.pcm[:, :kept], sound)
        f0_hz = (guess.float() - batch.f0_hz)[:, : -c.lookahead_frames].abs().mean()
    loss = spectral + PHASE_SHARE * phase + f0_hz / _F0_SCALE_HZ
    return loss, {"spectral": spectral, "phase": phase, "f0_hz": f0_hz}


def spectral_losses(made: Tensor, true: Tensor, sound: Sound) -> tuple[Tensor, Tensor]:
    """[B, N] each. First the vocoder's mel and, at each resolution, log magnitudes and log mels; then the error of the
    complex spectra over the true magnitude, also the mean of the resolutions."""
    spectral = _log_error(vocoder_mel(made, sound).exp(), vocoder_mel(true, sound).exp())
    phase = torch.zeros_like(spectral)
    for n_fft, hop in RESOLUTIONS:
        window = torch.hann_window(n_fft, device=made.device)
        x, y = (torch.stft(pcm, n_fft, hop, window=window, center=False, return_complex=True) for pcm in (made, true))
        a, b, error = (torch.sqrt(z.real**2 + z.imag**2 + _UNDER_ROOT) for z in (x, y, x - y))
        filters = mel_filters(min(_MOST_MELS, n_fft // _BINS_PER_MEL), n_fft, sound.output_rate_hz).to(made.device)
        spectral = spectral + (_log_error(a, b) + _log_error(filters @ a, filters @ b)) / len(RESOLUTIONS)
        phase = phase + error.sum() / b.sum() / len(RESOLUTIONS)
    return spectral, phase


def _log_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean difference of two magnitudes' logarithms."""
    return (torch.log(made + _LOG_FLOOR) - torch.log(true + _LOG_FLOOR)).abs().mean()
