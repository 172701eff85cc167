"""Which tensors the vocoder needs, by the checkpoint's own names.

A shape entry that is a word ("position_kernel") is a size that only the tensors tell; every tensor that uses the word
must agree on it. Weight-normed layers are listed in one spelling, `X.parametrizations.weight.original0/1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edge_sdk.config import FlowConfig, WaveformConfig

Shape = tuple[int | str, ...]

ESTIMATOR = "decoder.estimator"
BLOCKS = f"{ESTIMATOR}.transformer_blocks"
POSITION = f"{ESTIMATOR}.input_embed.conv_pos_embed"
LOOKAHEAD = "pre_lookahead_layer"
F0_CONVS = tuple(f"f0_predictor.condnet.{i}" for i in (0, 2, 4, 6, 8))  # the odd ones are ELUs
GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
# The older spelling of the same two tensors.
OLD_SPELLING = {"weight_g": GAIN, "weight_v": DIRECTION}


def flow_weights(config: FlowConfig, ff_dim: int, lookahead_width: int) -> Mapping[str, Shape]:
    """Every tensor of flow.pt. Sizes that only the tensors tell: lookahead_kernel, position_width (input channels of
    a group), position_kernel, time_features."""
    mels, dim, inner = config.n_mels, config.dim, config.heads * config.head_dim
    shapes: dict[str, Shape] = {
        "input_embedding.weight": (config.codebook_size, mels),
        **_linear("spk_embed_affine_layer", mels, config.speaker_dim),
        **_conv(f"{LOOKAHEAD}.conv1", lookahead_width, mels, config.lookahead_tokens + 1),
        **_conv(f"{LOOKAHEAD}.conv2", mels, lookahead_width, "lookahead_kernel"),
        **_linear(f"{ESTIMATOR}.time_embed.time_mlp.0", dim, "time_features"),
        **_linear(f"{ESTIMATOR}.time_embed.time_mlp.2", dim, dim),
        **_linear(f"{ESTIMATOR}.input_embed.proj", dim, 4 * mels),
        **_conv(f"{POSITION}.conv1.0", dim, "position_width", "position_kernel"),
        **_conv(f"{POSITION}.conv2.0", dim, "position_width", "position_kernel"),
        f"{ESTIMATOR}.rotary_embed.inv_freq": (config.head_dim // 2,),
        **_linear(f"{ESTIMATOR}.norm_out.linear", 2 * dim, dim),
        **_linear(f"{ESTIMATOR}.proj_out", mels, dim),
    }
    for i in range(config.depth):
        block = f"{BLOCKS}.{i}"
        shapes |= _linear(f"{block}.attn_norm.linear", 6 * dim, dim)
        for name in ("to_q", "to_k", "to_v"):
            shapes |= _linear(f"{block}.attn.{name}", inner, dim)
        shapes |= _linear(f"{block}.attn.to_out.0", dim, inner)
        shapes |= _linear(f"{block}.ff.ff.0.0", ff_dim, dim)
        shapes |= _linear(f"{block}.ff.ff.2", dim, ff_dim)
    return shapes


def waveform_weights(config: WaveformConfig) -> Mapping[str, Shape]:
    """Every tensor of hift.pt. Sizes that only the tensors tell: f0_first_kernel, f0_kernel, post_kernel."""
    base, stft = config.base_channels, config.stft_n_fft + 2
    shapes: dict[str, Shape] = {
        **_linear("m_source.l_linear", 1, config.harmonics + 1),
        **_normed("conv_pre", base, config.n_mels, config.lookahead_frames + 1),
        **_normed("conv_post", stft, config.stage_channels(config.stages - 1), "post_kernel"),
        **_linear("f0_predictor.classifier", 1, config.f0_channels),
    }
    for i, name in enumerate(F0_CONVS):
        inputs = config.f0_channels if i else config.n_mels
        shapes |= _normed(name, config.f0_channels, inputs, "f0_kernel" if i else "f0_first_kernel")
    for stage in range(config.stages):
        channels = config.stage_channels(stage)
        shapes |= _normed(f"ups.{stage}", channels, 2 * channels, config.upsample_kernels[stage])
        shapes |= _conv(f"source_downs.{stage}", channels, stft, config.source_down_kernel(stage))
        for block, kernel, dilations in residual_blocks(config, stage):
            shapes |= _residual(block, channels, kernel, len(dilations))
    return shapes


def residual_blocks(config: WaveformConfig, stage: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """(name, kernel, dilations) of a stage's residual blocks: the source branch's one, then the trunk's."""
    yield (
        f"source_resblocks.{stage}",
        config.source_resblock_kernels[stage],
        config.source_resblock_dilations[stage],
    )
    count = len(config.resblock_kernels)
    for j in range(count):
        yield f"resblocks.{stage * count + j}", config.resblock_kernels[j], config.resblock_dilations[j]


def _linear(name: str, outputs: int | str, inputs: int | str) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, outputs: int | str, inputs: int | str, kernel: int | str) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, kernel), f"{name}.bias": (outputs,)}


def _normed(name: str, outputs: int, inputs: int, kernel: int | str) -> dict[str, Shape]:
    return {
        f"{name}.{GAIN}": (outputs, 1, 1),
        f"{name}.{DIRECTION}": (outputs, inputs, kernel),
        f"{name}.bias": (outputs,),
    }


def _residual(name: str, channels: int, kernel: int, count: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for i in range(count):
        for convs, activations in (("convs1", "activations1"), ("convs2", "activations2")):
            shapes |= _normed(f"{name}.{convs}.{i}", channels, channels, kernel)
            shapes[f"{name}.{activations}.{i}.alpha"] = (channels,)
    return shapes
