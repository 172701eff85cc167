"""Weights that a waveform part begins with, so that what is to be learnt is a filter: the excitation, already a sharp
pulse for each period of the voice, goes through the last stage as it is.

Log magnitudes begin well above those of speech. Where all magnitudes of a frame are one, the frame is a single impulse
at its first sample, which the window makes zero: so around that point log magnitude and phase are nearly the real and
the imaginary part of any spectrum, though a phase here never leaves -1 to 1 radian.
"""

from __future__ import annotations

import math

import torch

from samples.nano.codec.waveform import Waveform

_STEEP = 20.0  # weight of the excitation's fundamental, of its multiple h a h-th: a saw's tooth, cut by tanh
_MEL_MIDDLE, _MEL_SPREAD = -6.0, 3.0
_RESIDUAL = 0.3  # of what is usual, in a block's second convolutions
_SOURCE = 4.0  # over n_fft: the excitation's STFT comes in at about this much
_OTHERS = 0.1  # of what is usual, in channels of the last stage that do not carry the excitation
_LEVEL = 0.1  # of the sound to the excitation
_MAGNITUDE_OF = 30  # samples of a frame to each 1 of magnitude


@torch.no_grad()
def begin(model: Waveform) -> Waveform:
    """The same model, its fresh weights changed."""
    c = model.config
    half, scale = c.stft_n_fft // 2 + 1, _SOURCE / c.stft_n_fft
    merge = model.m_source["l_linear"]
    merge.weight.copy_((_STEEP / torch.arange(1, c.harmonics + 2))[None])
    merge.bias.zero_()
    model.conv_pre.parametrizations.weight.original0.div_(_MEL_SPREAD)
    model.conv_pre.bias.sub_(model.conv_pre.weight.sum(dim=(1, 2)) * _MEL_MIDDLE)
    for block in (*model.resblocks, *model.source_resblocks):
        for convolution in block.convs2:
            convolution.parametrizations.weight.original0.mul_(_RESIDUAL)
    for down in model.source_downs:
        down.weight.mul_(scale)
    magnitude = c.stft_n_fft / _MAGNITUDE_OF
    model.conv_post.bias[:half] = math.log(magnitude)
    model.conv_post.bias[half:] = 0
    down, post = model.source_downs[-1].weight, model.conv_post.parametrizations.weight
    if len(down) >= 2 * half:
        numbers = torch.arange(2 * half)
        down.mul_(_OTHERS)
        down[numbers] = 0
        down[numbers, numbers] = scale
        weight = _OTHERS * model.conv_post.weight
        weight[numbers, numbers, -1] += _LEVEL / (scale * magnitude)
        post.original1.copy_(weight)
        post.original0.copy_(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
    return model
