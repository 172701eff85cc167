"""`cosyvoice3.yaml` of a vocoder that is made here: the released file's keys and tags, with the sizes of a spec."""

from __future__ import annotations

from edge_sdk.export.random_checkpoint.specs import VocoderSpec

MELS, SPEAKER_DIM, LOOKAHEAD_TOKENS = 80, 192, 3
HARMONICS, LOOKAHEAD_FRAMES = 8, 4

RANDOM = "A random CosyVoice3 vocoder, made by edge_sdk.export.random_checkpoint. What it says is noise."

_TEMPLATE = """\
# {about}
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:numpy.random.seed [1986]
__set_seed3: !apply:torch.manual_seed [1986]
__set_seed4: !apply:torch.cuda.manual_seed_all [1986]

sample_rate: 24000
llm_input_size: 896
llm_output_size: 896
spk_embed_dim: {speaker_dim}
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: 2

chunk_size: 25
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    speech_token_size: {codes}
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1

flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: {mels}
    output_size: {mels}
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: {codes}
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: {lookahead_tokens}
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: {mels}
        channels: {lookahead_width}
        pre_lookahead_len: {lookahead_tokens}
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: {mels}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: {cfg_rate}
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: {dim}
            depth: {depth}
            heads: {heads}
            dim_head: {head_dim}
            ff_mult: {ff_mult}
            mel_dim: {mels}
            mu_dim: {mels}
            spk_dim: {mels}
            out_channels: {mels}
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <num_decoding_left_chunks>

hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    in_channels: {mels}
    base_channels: {base_channels}
    nb_harmonics: {harmonics}
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: {noise_sigma}
    nsf_voiced_threshold: {voiced_threshold}
{phase}    upsample_rates: {upsample_rates}
    upsample_kernel_sizes: {upsample_kernels}
    istft_params:
        n_fft: {n_fft}
        hop_len: {hop}
    resblock_kernel_sizes: {resblock_kernels}
    resblock_dilation_sizes: {dilations}
    source_resblock_kernel_sizes: {source_resblock_kernels}
    source_resblock_dilation_sizes: {source_dilations}
    lrelu_slope: 0.1
    audio_limit: 0.99
    conv_pre_look_right: {lookahead_frames}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
        num_class: 1
        in_channels: {mels}
        cond_channels: {f0_channels}

mel_spec_transform1: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: {mels}
    sampling_rate: !ref <sample_rate>
    hop_size: 480
    win_size: 1920
    fmin: 0
    fmax: null
    center: False
hifigan: !new:cosyvoice.hifigan.hifigan.HiFiGan
    generator: !ref <hift>
    discriminator: !new:cosyvoice.hifigan.discriminator.MultipleDiscriminator
        mpd: !new:matcha.hifigan.models.MultiPeriodDiscriminator
        mrd: !new:cosyvoice.hifigan.discriminator.MultiResSpecDiscriminator
    mel_spec_transform: [
        !ref <mel_spec_transform1>
    ]

get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
    version: cosyvoice3
allowed_special: 'all'
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: {mels}
    sampling_rate: !ref <sample_rate>
    hop_size: 480
    win_size: 1920
    fmin: 0
    fmax: null
    center: False
"""


def vocoder_yaml(spec: VocoderSpec, about: str = RANDOM) -> str:
    """The file's text, `about` (one line) its first comment. Tags are data to every reader of ours; upstream's loader
    would build its classes from them."""
    t = spec.trunk
    return _TEMPLATE.format(
        about=about,
        speaker_dim=SPEAKER_DIM,
        codes=spec.codes,
        mels=MELS,
        lookahead_tokens=LOOKAHEAD_TOKENS,
        lookahead_width=spec.lookahead_width,
        dim=spec.dim,
        depth=spec.depth,
        heads=spec.heads,
        head_dim=spec.head_dim,
        ff_mult=spec.ff_mult,
        base_channels=spec.base_channels,
        f0_channels=spec.f0_channels,
        harmonics=HARMONICS,
        cfg_rate=spec.cfg_rate,
        n_fft=t.n_fft,
        hop=t.hop,
        noise_sigma=t.noise_sigma,
        voiced_threshold=t.voiced_threshold_hz,
        lookahead_frames=LOOKAHEAD_FRAMES,
        upsample_rates=list(t.upsample_rates),
        upsample_kernels=list(t.upsample_kernels),
        resblock_kernels=list(t.resblock_kernels),
        dilations=[list(t.resblock_dilations) for _ in t.resblock_kernels],
        source_resblock_kernels=list(t.source_resblock_kernels),
        source_dilations=[list(t.source_resblock_dilations) for _ in t.source_resblock_kernels],
        phase="    nsf_phase: running\n" if spec.running_phase else "",
    )
