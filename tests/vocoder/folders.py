"""Vocoder folders with random weights, of any sizes of the family: what the goldens' one fixture cannot show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.export.vocoder_hyperparameters import read_hyperparameters
from edge_sdk.export.vocoder_weights import GAIN, Shape, flow_weights, waveform_weights
from edge_sdk.tensorfile import write_tensors

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """Everything that may differ between checkpoints of the family. Defaults are small."""

    codes: int = 50
    mels: int = 20
    speaker: int = 12
    token_rate: int = 25
    frames_per_token: int = 2
    chunk_tokens: int = 25
    lookahead: int = 3
    lookahead_width: int = 16
    lookahead_kernel: int = 3
    dim: int = 32
    depth: int = 1
    heads: int = 2
    head_dim: int = 16
    ff_mult: int = 2
    cfg_rate: float = 0.7
    position_groups: int = 4
    position_kernel: int = 31
    time_features: int = 16
    base_channels: int = 16
    f0_channels: int = 8
    f0_first_kernel: int = 4
    f0_kernel: int = 3
    harmonics: int = 8
    rates: tuple[int, ...] = (8, 5, 3)
    kernels: tuple[int, ...] = (16, 11, 7)
    n_fft: int = 16
    hop: int = 4
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    source_kernels: tuple[int, ...] = (7, 7, 11)
    look_right: int = 4
    post_kernel: int = 7
    running_phase: bool = False

    @property
    def sample_rate(self) -> int:
        return self.token_rate * self.frames_per_token * math.prod(self.rates) * self.hop


def write_folder(folder: Path, sizes: Sizes, seed: int) -> Path:
    """cosyvoice3.yaml with only what is needed, flow.safetensors, hift.safetensors, voice.npy."""
    folder.mkdir(parents=True)
    (folder / "cosyvoice3.yaml").write_text(yaml_text(sizes))
    found = read_hyperparameters(folder / "cosyvoice3.yaml")
    words = {
        "lookahead_kernel": sizes.lookahead_kernel,
        "position_width": sizes.dim // sizes.position_groups,
        "position_kernel": sizes.position_kernel,
        "time_features": sizes.time_features,
        "f0_first_kernel": sizes.f0_first_kernel,
        "f0_kernel": sizes.f0_kernel,
        "post_kernel": sizes.post_kernel,
    }
    rng = np.random.default_rng(seed)
    for name, shapes in (
        ("flow", flow_weights(found.flow, found.ff_dim, found.lookahead_width)),
        ("hift", waveform_weights(found.waveform)),
    ):
        save(folder / f"{name}.safetensors", {n: _random(rng, n, s, words) for n, s in shapes.items()})
    np.save(folder / "voice.npy", rng.standard_normal(sizes.speaker).astype(np.float32))
    return folder


def save(path: Path, tensors: dict[str, Array]) -> None:
    with path.open("wb") as file:
        write_tensors(file, tensors)


def _random(rng: np.random.Generator, name: str, wanted: Shape, words: dict[str, int]) -> Array:
    shape = tuple(words[d] if isinstance(d, str) else d for d in wanted)
    values = rng.standard_normal(shape)
    if name.endswith("inv_freq"):
        values = 10000.0 ** (-np.arange(shape[0]) / shape[0])
    elif name.endswith("alpha"):
        values = 1 + 0.25 * values
    elif name.endswith(GAIN):
        values = 0.9 + 0.1 * values
    elif name == "f0_predictor.classifier.weight":
        values = values * 60 / math.sqrt(shape[1])
    elif name == "f0_predictor.classifier.bias":
        values = np.full(shape, 150.0)
    elif name == "conv_post.bias":
        values = values * 0.5 - np.repeat([4.0, 0.0], shape[0] // 2)  # quiet enough not to clip
    elif name.endswith("attn_norm.linear.bias"):
        values = 0.1 * values + np.repeat([0, 0, 0.5, 0, 0, 0.5], shape[0] // 6)  # gates are open
    elif len(shape) == 1:
        values = 0.1 * values
    elif name != "input_embedding.weight":
        values = values * 1.3 / math.sqrt(math.prod(shape[1:]))
    return values.astype(np.float32)


def yaml_text(s: Sizes) -> str:
    dilations = [list(s.dilations)]
    return f"""\
sample_rate: {s.sample_rate}
spk_embed_dim: {s.speaker}
token_frame_rate: {s.token_rate}
token_mel_ratio: {s.frames_per_token}
chunk_size: {s.chunk_tokens}
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: {s.mels}
    output_size: {s.mels}
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: mel
    vocab_size: {s.codes}
    input_frame_rate: !ref <token_frame_rate>
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: {s.lookahead}
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: {s.mels}
        channels: {s.lookahead_width}
        pre_lookahead_len: {s.lookahead}
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        spk_emb_dim: {s.mels}
        cfm_params: !new:omegaconf.DictConfig
            content:
                solver: euler
                t_scheduler: cosine
                inference_cfg_rate: {s.cfg_rate}
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: {s.dim}
            depth: {s.depth}
            heads: {s.heads}
            dim_head: {s.head_dim}
            ff_mult: {s.ff_mult}
            mel_dim: {s.mels}
            mu_dim: {s.mels}
            spk_dim: {s.mels}
            out_channels: {s.mels}
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    in_channels: {s.mels}
    base_channels: {s.base_channels}
    nb_harmonics: {s.harmonics}
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    {"nsf_phase: running" if s.running_phase else ""}
    upsample_rates: {list(s.rates)}
    upsample_kernel_sizes: {list(s.kernels)}
    istft_params: {{n_fft: {s.n_fft}, hop_len: {s.hop}}}
    resblock_kernel_sizes: {list(s.resblock_kernels)}
    resblock_dilation_sizes: {dilations * len(s.resblock_kernels)}
    source_resblock_kernel_sizes: {list(s.source_kernels)}
    source_resblock_dilation_sizes: {dilations * len(s.source_kernels)}
    lrelu_slope: 0.1
    audio_limit: 0.99
    conv_pre_look_right: {s.look_right}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
        num_class: 1
        in_channels: {s.mels}
        cond_channels: {s.f0_channels}
"""
