"""Sizes of the checkpoints to make: frozen dataclasses, all of whose numbers are free within the family."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_sdk.errors import ExportError

# (content, special) in the order of their ids. The tool and thinking tags are plain added tokens in the real model too.
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<think>", False),
    ("</think>", False),
    ("<|AUDIO|>", True),
    ("<|audio_bos|>", True),
    ("<|audio_eos|>", True),
    ("<|audio_pad|>", True),
    ("<|sil|>", True),
)


@dataclass(frozen=True)
class MoESpec:
    """Qwen3-MoE routing: layer i is sparse unless i is in `dense_layers` or (i + 1) % sparse_step is not 0."""

    experts: int
    experts_per_token: int
    intermediate: int
    normalize: bool = True
    sparse_step: int = 1
    dense_layers: tuple[int, ...] = ()

    def is_sparse(self, layer: int) -> bool:
        return layer not in self.dense_layers and (layer + 1) % self.sparse_step == 0


@dataclass(frozen=True)
class StackSpec:
    """A Qwen3 decoder stack."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rope_theta: float
    moe: MoESpec | None = None
    max_positions: int = 40960

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ExportError(
                f"a stack needs heads ({self.heads}) that divide into kv_heads ({self.kv_heads}) "
                f"and an even head_dim ({self.head_dim})"
            )


@dataclass(frozen=True)
class EncoderSpec:
    """The Whisper-shaped encoder; its output width is the backbone's."""

    d_model: int
    layers: int
    heads: int
    ffn: int
    n_mels: int = 128
    n_window: int = 100
    max_positions: int = 1500

    def __post_init__(self) -> None:
        if self.d_model % self.heads or self.d_model % 2 or self.n_window > self.max_positions:
            raise ExportError(
                f"an encoder needs an even d_model ({self.d_model}) that divides into heads ({self.heads}), "
                f"and n_window ({self.n_window}) within its {self.max_positions} positions"
            )


@dataclass(frozen=True)
class SpeechIdSpec:
    """The codebook: `real` codes, then four more rows in any order: these three and one that nothing uses."""

    real: int
    bos: int
    eos: int
    pad: int

    @classmethod
    def after(cls, real: int) -> SpeechIdSpec:
        """The released model's order: bos, eos, pad, unk behind the real codes."""
        return cls(real, real, real + 1, real + 2)

    def __post_init__(self) -> None:
        ids = {self.bos, self.eos, self.pad}
        if self.real < 1 or len(ids) != 3 or min(ids) < self.real or max(ids) >= self.size:
            raise ExportError(f"codebook ids must be three of the four behind the {self.real} real codes, got {self}")

    @property
    def size(self) -> int:
        """Rows of the codebook."""
        return self.real + 4

    @property
    def unk(self) -> int:
        return next(i for i in range(self.real, self.size) if i not in (self.bos, self.eos, self.pad))


@dataclass(frozen=True)
class LanguageSpec:
    """Encoder, grouping, backbone and speech head.

    Args:
        head: the speech head; None makes a checkpoint that only writes text.
        text_tokens: byte-level BPE tokens; the added tokens' ids follow them.
        vocab_size: rows of the text tables; those past the tokenizer have zero rows in the text head.
        text_eos_gain, speech_eos_gain: how much larger than others the end-of-text row of the text head, and the
            end-of-speech row of the codebook are: what decides how long replies last.
        readable: keep text tokens that are not whole printable text, and added tokens, from being picked.
        features_mode: "replace" or "add", how audio joins the placeholder's ids.
    """

    text: StackSpec
    head: StackSpec | None
    encoder: EncoderSpec
    speech: SpeechIdSpec
    text_tokens: int
    vocab_size: int
    group_size: int = 5
    tied: bool = False
    features_mode: str = "replace"
    added_tokens: tuple[tuple[str, bool], ...] = ADDED_TOKENS
    text_eos_gain: float = 1.0
    speech_eos_gain: float = 1.0
    readable: bool = False
    max_new_tokens: int = 2048

    def __post_init__(self) -> None:
        contents = [content for content, _ in self.added_tokens]
        missing = [content for content, _ in ADDED_TOKENS if content not in contents]
        if missing or len(set(contents)) != len(contents):
            raise ExportError(f"added_tokens must name each token once; missing {missing}")
        least = self.text_tokens + len(contents)
        if self.text_tokens < 256 or self.vocab_size < least:
            raise ExportError(
                f"text_tokens ({self.text_tokens}) must be at least the 256 bytes, and vocab_size "
                f"({self.vocab_size}) at least {least}"
            )
        if self.features_mode not in ("replace", "add"):
            raise ExportError(f"features_mode is {self.features_mode!r}; use 'replace' or 'add'")

    def token_id(self, content: str) -> int:
        """Id of an added token."""
        return self.text_tokens + [name for name, _ in self.added_tokens].index(content)


@dataclass(frozen=True)
class TrunkSpec:
    """Stages of the waveform part, by default the released model's; hop times upsample_rates is a frame's samples."""

    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    n_fft: int = 16
    hop: int = 4
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)  # of each block
    source_resblock_kernels: tuple[int, ...] = (7, 7, 11)  # one a stage
    source_resblock_dilations: tuple[int, ...] = (1, 3, 5)
    noise_sigma: float = 0.003  # of the excitation's noise beside a voice
    voiced_threshold_hz: int = 10  # f0 below it is no voice


@dataclass(frozen=True)
class VocoderSpec:
    """The CosyVoice3 flow and waveform part. What is not here is as in the released model."""

    codes: int
    dim: int
    depth: int
    heads: int
    head_dim: int
    lookahead_width: int
    base_channels: int
    f0_channels: int
    ff_mult: int = 2
    time_features: int = 256
    position_kernel: int = 31
    position_groups: int = 16
    voices: tuple[str, ...] = ("random",)
    running_phase: bool = False  # not as in the released model: see docs/vocoder.md
    cfg_rate: float = 0.7  # of classifier-free guidance
    trunk: TrunkSpec = field(default_factory=TrunkSpec)

    def __post_init__(self) -> None:
        halvings = 2 ** len(self.trunk.upsample_rates)
        if self.dim % self.position_groups or self.base_channels % halvings or self.head_dim % 2:
            raise ExportError(
                f"a vocoder needs a dim ({self.dim}) that divides into {self.position_groups} position groups, "
                f"base_channels ({self.base_channels}) that halve at each upsampling stage, and an even head_dim "
                f"({self.head_dim})"
            )
