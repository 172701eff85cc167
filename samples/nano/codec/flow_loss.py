"""Conditional flow matching: what the flow learns from pairs of codes and mels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.export.reference.flow import time_grid
from samples.nano.codec.flow import Flow

# cosyvoice3.yaml's cfm_params: smallest noise that a path ends with, share of rows without condition.
SIGMA_MIN = 1e-6
UNCONDITIONAL_SHARE = 0.2
MASKED_SHARE = 0.5  # of the calls that see through the chunk mask, as upstream was trained
SAMPLED_STEPS = 2, 3, 4, 4  # of `sampled_loss`, one of them a call: the device takes four


@dataclass(frozen=True)
class FlowBatch:
    """Codes int64 [B, T + lookahead_tokens] (`codebook_size`: none), mel [B, L, n_mels], valid bool [B, L]: frames
    that are sound and not filling, speaker [B, speaker_dim]."""

    codes: Tensor
    mel: Tensor
    valid: Tensor
    speaker: Tensor


def flow_loss(model: Flow, batch: FlowBatch) -> Tensor:
    """Mean squared error of the velocity on straight paths from noise to mel (OT-CFM), cosine times as the sampler's.

    Some calls see through the chunk mask and some see everything, so that streaming and whole synthesis are both modes
    that the model knows. Random numbers are torch's own.
    """
    rows, device = len(batch.mel), batch.mel.device
    t = 1 - torch.cos(0.5 * math.pi * torch.rand(rows, device=device))
    noise = torch.randn_like(batch.mel)
    kept = torch.rand(rows, device=device) >= UNCONDITIONAL_SHARE
    at = t[:, None, None]
    x = (1 - (1 - SIGMA_MIN) * at) * noise + at * batch.mel
    target = batch.mel - (1 - SIGMA_MIN) * noise
    mu = model.tokens(batch.codes) * kept[:, None, None]
    speaker = model.speaker(batch.speaker) * kept[:, None]
    mask = _masked_or_not(model, batch)
    error = (model.velocity(x, mu, speaker, t, mask).float() - target) ** 2
    return (error.mean(dim=-1) * batch.valid).sum() / batch.valid.sum()


def sampled_loss(model: Flow, batch: FlowBatch) -> Tensor:
    """Mean absolute error of the mel that a few Euler steps from noise end in, without guidance; all of them learn.

    A velocity takes all of the noise away again, and a narrow network may not carry 80 bins of it beside what is said:
    some stays in the mel. Here one step learns to take away what those before it left. What comes out is near the
    median of the mels and no drawn one, so it is smoother. For a flow that `flow_loss` has trained.
    """
    steps = SAMPLED_STEPS[int(torch.randint(len(SAMPLED_STEPS), ()))]
    mask = _masked_or_not(model, batch)
    mu, speaker, x = model.tokens(batch.codes), model.speaker(batch.speaker), torch.randn_like(batch.mel)
    for t, dt in zip(*time_grid(steps), strict=True):
        times = torch.full((len(x),), float(t), device=x.device)
        x = x + float(dt) * model.velocity(x, mu, speaker, times, mask).float()
    error = (x - batch.mel).abs()
    return (error.mean(dim=-1) * batch.valid).sum() / batch.valid.sum()


def _masked_or_not(model: Flow, batch: FlowBatch) -> Tensor:
    masked = bool(torch.rand(()) < MASKED_SHARE)
    return seen(batch.valid, model.config.chunk_frames if masked else None)


def seen(valid: Tensor, block: int | None) -> Tensor:
    """valid bool [B, L] -> which frames a frame sees, bool [B, 1, L, L]: its block of `block` frames and those before
    it (None: all), of them those that are sound."""
    frames = valid.shape[1]
    number = torch.arange(frames, device=valid.device) // (block or frames)
    return (number[:, None] >= number)[None, None] & valid[:, None, None, :]


@torch.no_grad()
def begin_near(model: Flow, mels: Tensor, scalars: Tensor) -> None:
    """Let the model begin with what is mostly right: a velocity towards the mean of `mels` [frames, n_mels], and codes
    that are alike where their `scalars` [codebook_size, D] are, since many codes are seldom heard."""
    model.decoder["estimator"].proj_out.bias.copy_(mels.mean(dim=0))
    directions = torch.randn(scalars.shape[1], model.config.n_mels)
    model.input_embedding.weight.copy_(scalars @ directions / scalars.std(dim=0).norm())
