"""The waveform part: vocoder mel -> 24 kHz PCM, in torch, under the names of CosyVoice3's checkpoint (HiFT).

The computation of `edge_sdk.export.reference.waveform`, batched and trainable: `state_dict()` is hift.safetensors.
Channels lead, [B, C, L]. Weight norm is kept in its parts, as it is stored.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from edge_sdk.config import WaveformConfig
from edge_sdk.export.reference.waveform import MAX_MAGNITUDE, POST_SLOPE, SNAKE_EPS
from samples.nano.codec.sizes import VocoderSizes

_F0_CONVOLUTIONS, _F0_KERNEL = 5, 3  # the first has one tap more, and looks to the right
_POST_KERNEL = 7
_TYPICAL_HZ, _SPREAD_HZ = 150.0, 50.0  # where the f0 predictor begins


class Waveform(nn.Module):
    """f0 predictor, excitation and trunk."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        c = self.config = sizes.waveform
        stft = c.stft_n_fft + 2
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(c.harmonics + 1, 1)})
        self.conv_pre = weight_norm(nn.Conv1d(c.n_mels, c.base_channels, c.lookahead_frames + 1))
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for stage in range(c.stages):
            channels, stride = c.stage_channels(stage), c.source_stride(stage)
            self.ups.append(weight_norm(nn.Conv1d(2 * channels, channels, c.upsample_kernels[stage])))
            self.source_downs.append(nn.Conv1d(stft, channels, c.source_down_kernel(stage), stride))
            kernel, dilations = c.source_resblock_kernels[stage], c.source_resblock_dilations[stage]
            self.source_resblocks.append(Residual(channels, kernel, dilations))
            for kernel, dilations in zip(c.resblock_kernels, c.resblock_dilations, strict=True):
                self.resblocks.append(Residual(channels, kernel, dilations))
        self.conv_post = weight_norm(nn.Conv1d(c.stage_channels(c.stages - 1), stft, _POST_KERNEL))
        self.f0_predictor = F0Predictor(c)
        self.register_buffer("window", torch.hann_window(c.stft_n_fft), persistent=False)

    window: Tensor

    def f0(self, mel: Tensor) -> Tensor:
        """mel [B, n_mels, L] -> Hz [B, L]; an export computes this in float64."""
        found: Tensor = self.f0_predictor(mel)
        return found

    def source(self, f0: Tensor, noise: Tensor) -> Tensor:
        """f0 [B, L] in Hz, noise uniform in [0, 1) [B, L * samples_per_frame, harmonics + 1] -> [B, samples]."""
        mixed = harmonics(f0, noise, self.config)
        merged: Tensor = self.m_source["l_linear"](mixed)
        return torch.tanh(merged[..., 0])

    def aligned_source(self, turns: Tensor, f0: Tensor, noise: Tensor) -> Tensor:
        """The excitation whose fundamental is at `turns` [B, samples] (whole ones may be left off) where `f0` [B, L]
        has a voice; what `source` makes of a running phase, but for the phase."""
        c = self.config
        multiples = torch.arange(1, c.harmonics + 2, device=turns.device)
        sine = c.sine_amplitude * torch.sin(2 * math.pi * turns[..., None] * multiples)
        merged: Tensor = self.m_source["l_linear"](with_noise(sine, f0 > c.voiced_threshold_hz, noise, c))
        return torch.tanh(merged[..., 0])

    def trunk(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel [B, n_mels, L], source [B, L * samples_per_frame] -> PCM [B, L * samples_per_frame]."""
        c = self.config
        with exact(source):
            spectrum = torch.stft(source, c.stft_n_fft, c.stft_hop, window=self.window, return_complex=True)
            stft = torch.cat([spectrum.real, spectrum.imag], dim=1)
        x = self.conv_pre(functional.pad(mel, (0, c.lookahead_frames)))
        for stage in range(c.stages):
            x = self.upsampled(stage, x)
            x = x + self.source_branch(stage, stft)
            blocks = self.resblocks[stage * len(c.resblock_kernels) : (stage + 1) * len(c.resblock_kernels)]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        with exact(x):
            x = self.conv_post(functional.pad(functional.leaky_relu(x, POST_SLOPE), (_POST_KERNEL - 1, 0)))
            log_magnitude, phase = x.chunk(2, dim=1)
            # exp(min(x)) is min(exp(x)), and has no infinite gradient.
            magnitude = torch.exp(log_magnitude.clamp(max=math.log(MAX_MAGNITUDE)))
            return torch.istft(torch.polar(magnitude, phase.sin()), c.stft_n_fft, c.stft_hop, window=self.window)

    def upsampled(self, stage: int, x: Tensor) -> Tensor:
        """Each frame repeated, then a causal convolution: as one that has an output for each repetition."""
        c = self.config
        rate, kernel = c.upsample_rates[stage], c.upsample_kernels[stage]
        x = functional.leaky_relu(x, c.lrelu_slope)
        with exact(x):
            kernels = self.ups[stage].weight
            taps = repeated_taps(kernel, rate).to(kernels)
            weight = torch.einsum("oik,ptk->opit", kernels, taps).flatten(0, 1)
        x = functional.conv1d(functional.pad(x, (taps.shape[1] - 1, 0)), weight)
        x = x.unflatten(1, (-1, rate)).transpose(2, 3).flatten(2) + self.ups[stage].bias[:, None]
        if stage == c.stages - 1:
            x = torch.cat([x[..., 1:2], x], dim=-1)  # a mirrored frame: as many as the STFT has
        return x

    def source_branch(self, stage: int, stft: Tensor) -> Tensor:
        with exact(stft):
            found = self.source_downs[stage](functional.pad(stft, (self.config.source_stride(stage) - 1, 0)))
        branch: Tensor = self.source_resblocks[stage](found)
        return branch

    def forward(self, mel: Tensor, f0: Tensor, noise: Tensor) -> Tensor:
        """PCM [B, samples] within the limits that the device clips at."""
        limit = self.config.audio_limit
        return self.trunk(mel, self.source(f0, noise)).clamp(-limit, limit)


def exact(x: Tensor) -> torch.autocast:
    """No bfloat16 in it: where phases are made or read, and where the outcome is the sound itself."""
    return torch.autocast(x.device.type, enabled=False)


@lru_cache(maxsize=16)
def repeated_taps(kernel: int, rate: int) -> Tensor:
    """Which taps of a causal kernel fall on which frame where each is repeated `rate` times, [rate, frames, kernel] of
    zeros and ones: at each repetition, from the oldest frame on."""
    frames = -(-(kernel - 1) // rate) + 1
    back = (torch.arange(rate)[:, None] + torch.arange(kernel) - (kernel - 1)).div(rate, rounding_mode="floor")
    return (torch.arange(frames)[None, :, None] == frames - 1 + back[:, None]).float()


class F0Predictor(nn.Module):
    """mel [B, n_mels, L] -> Hz [B, L]: one right-looking convolution, four causal ones, zeros outside."""

    def __init__(self, c: WaveformConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(_F0_CONVOLUTIONS):
            kernel = _F0_KERNEL + (i == 0)
            layers += [weight_norm(nn.Conv1d(c.f0_channels if i else c.n_mels, c.f0_channels, kernel)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(c.f0_channels, 1)
        with torch.no_grad():
            self.classifier.weight *= _SPREAD_HZ
            self.classifier.bias.fill_(_TYPICAL_HZ)

    def forward(self, mel: Tensor) -> Tensor:
        x = functional.pad(mel, (0, _F0_KERNEL))
        for i in range(0, len(self.condnet), 2):
            x = self.condnet[i + 1](self.condnet[i](functional.pad(x, (_F0_KERNEL - 1, 0)) if i else x))
        return self.classifier(x.transpose(1, 2))[..., 0].abs()


class Residual(nn.Module):
    """[B, C, L] -> the same: for each dilation Snake, dilated convolution, Snake, convolution, added to its input."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.left = kernel - 1
        self.dilations = dilations
        self.convs1 = nn.ModuleList(weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d)) for d in dilations)
        self.convs2 = nn.ModuleList(weight_norm(nn.Conv1d(channels, channels, kernel)) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for i, dilation in enumerate(self.dilations):
            y = self.convs1[i](functional.pad(self.activations1[i](x), (self.left * dilation, 0)))
            x = x + self.convs2[i](functional.pad(self.activations2[i](y), (self.left, 0)))
        return x


class Snake(nn.Module):
    """x + sin(a x)^2 / a, a as stored."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype is torch.bfloat16 else x  # what is added up from block to block keeps its bits
        found: Tensor = _Snake.apply(x, self.alpha[:, None] + SNAKE_EPS)
        return found


class _Snake(torch.autograd.Function):
    """With its own gradient: a third of the passes over memory that torch's would make, most of a step's time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(x, a)
        return torch.addcmul(x + 0.5 / a, torch.cos(2 * a * x), -0.5 / a)  # sin^2 y is (1 - cos 2y) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, a = ctx.saved_tensors
        y = 2 * a * x
        sine = torch.sin(y)
        of_a = (gradient * (y * sine - 1 + torch.cos(y))).sum(dim=(0, 2))[:, None] / (2 * a**2)
        return torch.addcmul(gradient, gradient, sine), of_a


def harmonics(f0: Tensor, noise: Tensor, c: WaveformConfig) -> Tensor:
    """f0 [B, L] in Hz, noise uniform [B, samples, H] -> [B, samples, H]: a sine for f0 and each overtone.

    In upstream's mixture of precisions (`edge_sdk.excitation`): turns in float32, their sum in float64 but rounded,
    the phase in float32. A sine keeps one value through a frame, or, with a running phase, goes on in it.
    """
    hertz = f0.float()
    voiced = hertz > c.voiced_threshold_hz
    multiples = torch.arange(1, c.harmonics + 2, device=f0.device, dtype=torch.float32)
    if c.running_phase:
        sine = c.sine_amplitude * torch.sin(2 * math.pi * running_turns(hertz, multiples, c)).float()
        return with_noise(sine, voiced, noise, c)
    turns = torch.remainder(hertz[..., None] * multiples / c.sample_rate, 1.0)
    total = torch.cumsum(turns.double(), dim=1).float()
    phase = total * 2 * torch.tensor(math.pi, dtype=torch.float32) * c.samples_per_frame
    sine = c.sine_amplitude * torch.sin(phase.double()).float() * voiced[..., None]
    level = torch.where(voiced, c.noise_sigma, c.sine_amplitude / 3)[..., None]
    sine, level = (part.repeat_interleave(c.samples_per_frame, dim=1) for part in (sine, level))
    return sine + level * noise


def with_noise(sine: Tensor, voiced: Tensor, noise: Tensor, c: WaveformConfig) -> Tensor:
    """sine and noise [B, samples, H], voiced [B, L] -> [B, samples, H]: sines in voiced frames, noise in all."""
    level = torch.where(voiced, c.noise_sigma, c.sine_amplitude / 3)
    voiced, level = (part.repeat_interleave(c.samples_per_frame, dim=1)[..., None] for part in (voiced, level))
    return sine * voiced + level * noise


def running_turns(hertz: Tensor, multiples: Tensor, c: WaveformConfig) -> Tensor:
    """f0 [B, L] -> turns of each harmonic at each sample, float64 [B, samples, H], whole turns of earlier frames taken
    off."""
    a_sample = hertz.double()[..., None] * multiples / c.sample_rate
    ends = torch.cumsum(a_sample * c.samples_per_frame, dim=1)
    begin = torch.remainder(ends - a_sample * c.samples_per_frame, 1.0)
    samples = torch.arange(1, c.samples_per_frame + 1, device=hertz.device)[:, None]
    return (begin[:, :, None] + a_sample[:, :, None] * samples).flatten(1, 2)
