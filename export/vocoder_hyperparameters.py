"""The numbers of `cosyvoice3.yaml` that the vocoder computes with, each checked against what is built here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sdk.config import FlowConfig, WaveformConfig
from edge_sdk.export.vocoder_yaml import Document, Section

LATER = 0  # stands for a size that only the tensors tell, until they are read


@dataclass(frozen=True)
class Hyperparameters:
    """`flow` without steps, noise_frames and position_kernel; `waveform` without f0_lookahead_frames and
    source_noise_skip: those are filled in once the tensors are known."""

    flow: FlowConfig
    waveform: WaveformConfig
    ff_dim: int
    lookahead_width: int


def read_hyperparameters(path: Path) -> Hyperparameters:
    """Raises CheckpointError naming every key that is missing, malformed or not supported."""
    document = Document(path)
    top = document.top()
    flow_section = top.section("flow", "CausalMaskedDiffWithDiT")
    hift_section = top.section("hift", "CausalHiFTGenerator")
    document.raise_problems()  # with another class below, complaints about its keys would only confuse
    flow, ff_dim, lookahead_width = _flow(top, flow_section)
    waveform = _hift(top, hift_section, flow.n_mels)
    document.raise_problems()
    _check_rates(top, flow, waveform)
    document.raise_problems()
    return Hyperparameters(flow, waveform, ff_dim, lookahead_width)


def _flow(top: Section, flow: Section) -> tuple[FlowConfig, int, int]:
    """The flow's configuration, its feed-forward width, and its lookahead layer's width."""
    token_rate, ratio = top.integer("token_frame_rate"), top.integer("token_mel_ratio")
    mels, lookahead = flow.integer("input_size"), flow.integer("pre_lookahead_len")
    flow.same("output_size", mels, "input_size")
    flow.expect("output_type", "mel")
    flow.same("input_frame_rate", token_rate, "token_frame_rate")
    flow.same("token_mel_ratio", ratio, "the top level's token_mel_ratio")
    flow.ignore("only_mask_loss")

    layer = flow.section("pre_lookahead_layer", "PreLookaheadLayer")
    layer.same("in_channels", mels, "flow.input_size")
    layer.same("pre_lookahead_len", lookahead, "flow.pre_lookahead_len")
    width = layer.integer("channels")

    decoder = flow.section("decoder", "CausalConditionalCFM")
    decoder.same("spk_emb_dim", mels, "flow.output_size")
    decoder.ignore("in_channels", "n_spks")  # upstream never reads them
    sampler = decoder.section("cfm_params", "DictConfig").section("content")
    sampler.expect("solver", "euler")
    sampler.expect("t_scheduler", "cosine")
    cfg_rate = sampler.number("inference_cfg_rate")
    sampler.ignore("sigma_min", "training_cfg_rate", "reg_loss_type")

    dit = decoder.section("estimator", "DiT")
    dim, heads, head_dim = dit.integer("dim"), dit.integer("heads"), dit.integer("dim_head", 2)
    for key in ("mel_dim", "mu_dim", "spk_dim", "out_channels"):
        dit.same(key, mels, "flow.output_size")
    if head_dim % 2:
        dit.problem(f"'dim_head' is {head_dim}; rotary positions need an even number")
    chunk_frames = dit.integer("static_chunk_size")
    if chunk_frames % ratio:
        dit.problem(f"'static_chunk_size' is {chunk_frames} frames, not whole tokens of {ratio}")
    dit.ignore("dropout", "num_decoding_left_chunks")  # upstream's mask keeps everything to the left
    config = FlowConfig(
        codebook_size=flow.integer("vocab_size"),
        n_mels=mels,
        token_rate_hz=float(token_rate),
        frames_per_token=ratio,
        lookahead_tokens=lookahead,
        speaker_dim=flow.integer("spk_embed_dim"),
        dim=dim,
        depth=dit.integer("depth"),
        heads=heads,
        head_dim=head_dim,
        chunk_frames=chunk_frames,
        position_kernel=LATER,
        cfg_rate=cfg_rate,
        steps=(),
        noise_frames=LATER,
    )
    ff_dim = dim * dit.integer("ff_mult")
    for section in (flow, layer, decoder, sampler, dit):
        section.close()
    return config, ff_dim, width


def _hift(top: Section, hift: Section, mels: int) -> WaveformConfig:
    sample_rate = top.integer("sample_rate")
    hift.same("in_channels", mels, "flow.output_size")
    hift.same("sampling_rate", sample_rate, "sample_rate")
    stft = hift.section("istft_params")
    predictor = hift.section("f0_predictor", "CausalConvRNNF0Predictor")
    predictor.expect("num_class", 1)
    predictor.same("in_channels", mels, "flow.output_size")
    config = WaveformConfig(
        n_mels=mels,
        sample_rate=sample_rate,
        base_channels=hift.integer("base_channels"),
        f0_channels=predictor.integer("cond_channels"),
        harmonics=hift.integer("nb_harmonics"),
        sine_amplitude=hift.number("nsf_alpha"),
        noise_sigma=hift.number("nsf_sigma"),
        voiced_threshold_hz=hift.number("nsf_voiced_threshold"),
        upsample_rates=hift.integers("upsample_rates"),
        upsample_kernels=hift.integers("upsample_kernel_sizes"),
        stft_n_fft=stft.integer("n_fft", 2),
        stft_hop=stft.integer("hop_len"),
        resblock_kernels=hift.integers("resblock_kernel_sizes"),
        resblock_dilations=hift.integer_lists("resblock_dilation_sizes"),
        source_resblock_kernels=hift.integers("source_resblock_kernel_sizes"),
        source_resblock_dilations=hift.integer_lists("source_resblock_dilation_sizes"),
        lrelu_slope=hift.number("lrelu_slope"),
        audio_limit=hift.number("audio_limit"),
        lookahead_frames=hift.integer("conv_pre_look_right"),
        f0_lookahead_frames=LATER,
        source_noise_skip=LATER,
        running_phase=hift.choice("nsf_phase", {"held": False, "running": True}, "held"),  # ours: docs/vocoder.md
    )
    for section in (hift, stft, predictor):
        section.close()
    _check_stages(hift, config)
    return config


def _check_stages(hift: Section, c: WaveformConfig) -> None:
    """Lists that must go together, and sizes that must divide."""
    if c.base_channels % 2**c.stages:
        hift.problem(f"'base_channels' {c.base_channels} cannot be halved {c.stages} times")
    for key, found in (
        ("upsample_kernel_sizes", len(c.upsample_kernels)),
        ("source_resblock_kernel_sizes", len(c.source_resblock_kernels)),
        ("source_resblock_dilation_sizes", len(c.source_resblock_dilations)),
    ):
        if found != c.stages:
            hift.problem(f"'{key}' has {found} entries, 'upsample_rates' {c.stages}")
    if len(c.resblock_dilations) != len(c.resblock_kernels):
        hift.problem("'resblock_dilation_sizes' and 'resblock_kernel_sizes' differ in length")
    for kernel, rate in zip(c.upsample_kernels, c.upsample_rates, strict=False):
        if kernel < rate:
            hift.problem(f"an upsampling kernel of {kernel} is smaller than its rate {rate}")
    # Overlap-add needs every sample covered, and the mirrored edges must lie inside one mel frame.
    if c.stft_n_fft % 2 or c.stft_n_fft % c.stft_hop or c.stft_n_fft < 2 * c.stft_hop:
        hift.problem(f"an STFT of {c.stft_n_fft} with hop {c.stft_hop} is not supported")
    if c.stft_n_fft // 2 >= c.samples_per_frame:
        hift.problem(f"an STFT of {c.stft_n_fft} is too long for mel frames of {c.samples_per_frame} samples")


def _check_rates(top: Section, flow: FlowConfig, waveform: WaveformConfig) -> None:
    rate = flow.frame_rate_hz * waveform.samples_per_frame
    if rate != waveform.sample_rate:
        top.problem(
            f"'sample_rate' is {waveform.sample_rate}, but {flow.token_rate_hz:g} tokens/s of {flow.frames_per_token} "
            f"frames of {waveform.samples_per_frame} samples (upsample_rates and hop_len) make {rate:g}"
        )
