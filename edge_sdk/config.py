"""What a bundle's model is: frozen dataclasses, one a module, read from the manifest. Unknown keys are refused.

Every size, rate and id of the computation comes from here; the exporter fills it from the checkpoint's own files.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from edge_sdk.errors import BundleError

LATER = {"later": True}  # metadata of a field that the first bundles of this format version did not have


class Section:
    """Mixin: a frozen dataclass that reads and writes itself as JSON, checking names and types."""

    def to_json(self) -> dict[str, Any]:
        """Fields that came later (`LATER`) are left out at their default: readers from before need not know them."""
        return {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.metadata != LATER or getattr(self, f.name) != f.default
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "") -> Self:
        where = where or cls.__name__
        if not isinstance(value, Mapping):
            raise BundleError(f"{where} must be an object, found {type(value).__name__}")
        hints = typing.get_type_hints(cls)
        required = {
            f.name
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        unknown, missing = set(value) - set(hints), required - set(value)
        if unknown or missing:
            parts = [f"unknown {sorted(unknown)}"] * bool(unknown) + [f"missing {sorted(missing)}"] * bool(missing)
            raise BundleError(f"{where}: {', '.join(parts)}")
        return cls(**{name: _coerce(value[name], hints[name], f"{where}.{name}") for name in value})


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_json()
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _coerce(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint.from_json(value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {_coerce(k, args[0], where): _coerce(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BundleError(f"{where} must be {getattr(hint, '__name__', hint)}, found {value!r}")


@dataclass(frozen=True)
class MoEConfig(Section):
    """Qwen3-MoE routing of one backbone."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalize_weights: bool
    sparse_layers: tuple[int, ...]


@dataclass(frozen=True)
class TransformerConfig(Section):
    """A Qwen3-shaped decoder stack: the backbone or the speech head."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    moe: MoEConfig | None = None

    @property
    def cache_values_per_position(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class EncoderConfig(Section):
    """The Whisper-shaped audio encoder with window attention."""

    d_model: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    n_mels: int
    n_window: int

    @property
    def window_frames(self) -> int:
        """Mel frames of one attention window: the convolutions halve them to n_window rows."""
        return 2 * self.n_window


@dataclass(frozen=True)
class MelConfig(Section):
    """The encoder's input mel (Whisper's)."""

    n_mels: int
    n_fft: int
    hop_samples: int
    sample_rate: int
    max_samples: int  # upstream cuts, and pads with zeros, to this many samples


@dataclass(frozen=True)
class TextIds(Section):
    """Ids of the text vocabulary that the computation names."""

    vocab_size: int
    eos: tuple[int, ...]
    audio_bos: int
    audio_eos: int
    audio: int  # the placeholder that audio rows replace
    sil: int | None = None


@dataclass(frozen=True)
class SpeechIds(Section):
    """Ids of the codebook: `bos`, `eos` and `pad` stand behind the real codes."""

    codebook_size: int
    bos: int
    eos: int
    pad: int


@dataclass(frozen=True)
class ModelConfig(Section):
    """The language half: encoder, backbone, speech head."""

    group_size: int
    mel: MelConfig
    encoder: EncoderConfig
    backbone: TransformerConfig
    speech_head: TransformerConfig | None
    text_ids: TextIds
    speech_ids: SpeechIds
    audio_features_mode: str  # "replace" or "add"

    @property
    def frames_per_token(self) -> int:
        """Mel frames behind one 25 Hz row: the second convolution halves, the pooling halves again."""
        return 4

    @property
    def token_rate_hz(self) -> float:
        """Speech tokens (and encoder rows after pooling) a second: 25 for the released model."""
        return self.mel.sample_rate / (self.mel.hop_samples * self.frames_per_token)

    @property
    def step_ms(self) -> float:
        """Sound that one decode step makes: group_size speech tokens, 200 ms for the released model."""
        return 1000.0 * self.group_size / self.token_rate_hz

    def audio_token_count(self, samples: int) -> int:
        """25 Hz ids of `samples` at the mel's rate, evaluated as upstream does: truncated in double precision.

        Not `samples // 640`: for some multiples of 640 the division rounds down and one id is lost, and the
        number of placeholders in the prompt must be upstream's.
        """
        return int(samples / float(self.mel.sample_rate) * self.token_rate_hz)

    def placeholder_count(self, samples: int) -> int:
        return -(-self.audio_token_count(samples) // self.group_size)


@dataclass(frozen=True)
class FlowConfig(Section):
    """Speech tokens -> vocoder mel: the CosyVoice3 DiT flow."""

    codebook_size: int  # real codes only; larger ids never reach the vocoder
    n_mels: int
    token_rate_hz: float
    frames_per_token: int
    lookahead_tokens: int
    speaker_dim: int
    dim: int
    depth: int
    heads: int
    head_dim: int
    chunk_frames: int  # frames of one block of the trained chunk mask
    position_kernel: int
    cfg_rate: float
    steps: tuple[int, ...]  # Euler step counts that the graph has tables for
    noise_frames: int  # columns of the fixed initial noise
    cache_dtype: str = "float32"

    @property
    def frame_rate_hz(self) -> float:
        return self.token_rate_hz * self.frames_per_token

    @property
    def rows(self) -> int:
        """Times that a step computes a frame: with and without condition; where there is no guidance, with it alone."""
        return 2 if self.cfg_rate else 1


@dataclass(frozen=True)
class WaveformConfig(Section):
    """Vocoder mel -> PCM: the CosyVoice3 causal HiFT generator."""

    n_mels: int
    sample_rate: int
    base_channels: int
    f0_channels: int
    harmonics: int  # overtones beside the fundamental
    sine_amplitude: float
    noise_sigma: float
    voiced_threshold_hz: float
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    stft_n_fft: int
    stft_hop: int
    resblock_kernels: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    source_resblock_kernels: tuple[int, ...]
    source_resblock_dilations: tuple[tuple[int, ...], ...]
    lrelu_slope: float
    audio_limit: float
    lookahead_frames: int  # right context of conv_pre
    f0_lookahead_frames: int  # right context of the f0 predictor
    source_noise_skip: int  # draws of the seeded generator before the first excitation noise value
    # The excitation's sines run through a frame. Upstream's keep one value for as long as a frame lasts.
    running_phase: bool = field(default=False, metadata=LATER)

    @property
    def samples_per_frame(self) -> int:
        return self.stft_hop * math.prod(self.upsample_rates)

    @property
    def stages(self) -> int:
        return len(self.upsample_rates)

    def stage_channels(self, stage: int) -> int:
        """Channels after upsampling stage `stage`: halved at each."""
        return self.base_channels >> (stage + 1)

    def source_stride(self, stage: int) -> int:
        """STFT frames of the excitation per frame of this stage: what the later stages still upsample."""
        return math.prod(self.upsample_rates[stage + 1 :])

    def source_down_kernel(self, stage: int) -> int:
        stride = self.source_stride(stage)
        return 2 * stride if stride > 1 else 1


@dataclass(frozen=True)
class VocoderConfig(Section):
    flow: FlowConfig
    waveform: WaveformConfig
    voices: dict[str, str] = field(default_factory=dict)  # name -> file in the bundle
    default_voice: str = ""
