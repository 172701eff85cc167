"""Sizes of drsr-nano, and of a tiny one of the same shape that trains in seconds: every number of the recipe that is
no tokenizer's or config's to tell. Ids stand in neither: they come from the files that are written.

The shapes are the exporter's own (`edge_sdk.export.random_checkpoint.specs`): it writes this family's config.json and
cosyvoice3.yaml from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.export.random_checkpoint.specs import (
    ADDED_TOKENS,
    EncoderSpec,
    LanguageSpec,
    SpeechIdSpec,
    StackSpec,
    TrunkSpec,
    VocoderSpec,
)

FLOW_STEPS = 4  # of the flow on the device: understood better than upstream's ten (docs/NOTES.md)
_VOCABULARY_MULTIPLE = 32  # rows of the text tables: a round number, as in the released model


@dataclass(frozen=True)
class Sound:
    """Rates of what is heard and said."""

    input_rate_hz: int = 16000  # of the user's audio
    output_rate_hz: int = 24000  # of the reply
    n_mels: int = 80  # of the vocoder's mel
    hop_samples: int = 480  # 50 frames a second at 24 kHz
    n_fft: int = 1920
    token_rate_hz: int = 25

    @property
    def frame_rate_hz(self) -> int:
        return self.output_rate_hz // self.hop_samples

    @property
    def frames_per_token(self) -> int:
        return self.frame_rate_hz // self.token_rate_hz


@dataclass(frozen=True)
class CodecSize:
    """The speech tokenizer: vocoder mel -> one code per 40 ms, by finite scalar quantization (FSQ)."""

    levels: tuple[int, ...]  # of each scalar; their product is the number of codes
    width: int
    blocks: int

    @property
    def codes(self) -> int:
        return math.prod(self.levels)


@dataclass(frozen=True)
class VocoderSize:
    """The DiT flow and the HiFT-shaped waveform part."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    lookahead_width: int
    base_channels: int
    f0_channels: int
    running_phase: bool = True  # without a discriminator, held phases are not learnt to be a voice (docs/NOTES.md)
    cfg_rate: float = 0.7  # of the flow's classifier-free guidance
    trunk: TrunkSpec = dataclasses.field(default_factory=TrunkSpec)


@dataclass(frozen=True)
class Schedule:
    """How one stage trains: warm-up, then a cosine down to `final_share` of the learning rate.

    Args:
        muon: the matrices inside the language's layers are moved by Muon, at `muon_rate` of the learning rate; all
            else, or all, by AdamW.
        slow: beginnings of the names of weights that move at `slow_rate` of the learning rate: what was trained before
            beside what is fresh.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    final_share: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0  # gradients longer than this are shortened to it
    muon: bool = False
    muon_rate: float = 2.5
    slow: tuple[str, ...] = ()
    slow_rate: float = 1.0


@dataclass(frozen=True)
class Settings:
    """One model of the family. `text_tokens` is the most that the tokenizer may learn, added tokens not counted."""

    name: str
    text: StackSpec
    head: StackSpec
    encoder: EncoderSpec
    codec: CodecSize
    vocoder: VocoderSize
    text_tokens: int
    group_size: int = 5
    tied: bool = False
    voice: str = "nano"
    sound: Sound = Sound()
    seed: int = 1

    def language_spec(self, text_tokens: int | None = None) -> LanguageSpec:
        """What writes config.json. `text_tokens`: those the trained tokenizer has, if they are fewer."""
        count = self.text_tokens if text_tokens is None else text_tokens
        rows = count + len(ADDED_TOKENS)
        return LanguageSpec(
            text=self.text,
            head=self.head,
            encoder=self.encoder,
            speech=SpeechIdSpec.after(self.codec.codes),
            text_tokens=count,
            vocab_size=-(-rows // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
            group_size=self.group_size,
            tied=self.tied,
        )

    def vocoder_spec(self) -> VocoderSpec:
        """What writes cosyvoice3.yaml."""
        v = self.vocoder
        return VocoderSpec(
            codes=self.codec.codes,
            dim=v.dim,
            depth=v.depth,
            heads=v.heads,
            head_dim=v.head_dim,
            lookahead_width=v.lookahead_width,
            base_channels=v.base_channels,
            f0_channels=v.f0_channels,
            voices=(self.voice,),
            running_phase=v.running_phase,
            cfg_rate=v.cfg_rate,
            trunk=v.trunk,
        )


NANO = Settings(
    name="nano",
    text=StackSpec(
        hidden=320, layers=8, heads=6, kv_heads=2, head_dim=64, intermediate=960, rope_theta=1e5, max_positions=2048
    ),  # 6 heads of 64, not 320 / 64 = 5: they must divide into the 2 of keys and values
    head=StackSpec(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=768, rope_theta=1e5),
    encoder=EncoderSpec(d_model=384, layers=4, heads=6, ffn=1536, n_mels=80),  # Whisper tiny.en's
    codec=CodecSize(levels=(3,) * 8, width=256, blocks=4),
    vocoder=VocoderSize(
        dim=256, depth=6, heads=4, head_dim=64, lookahead_width=256, base_channels=128, f0_channels=128
    ),
    text_tokens=4084,  # with the added tokens 4096
    tied=True,  # with two tables, copying a word has to be learned word by word (docs/NOTES.md)
)

TINY = Settings(
    name="tiny",
    text=StackSpec(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=128, rope_theta=1e5, max_positions=2048
    ),
    head=StackSpec(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, rope_theta=1e5),
    encoder=EncoderSpec(d_model=32, layers=2, heads=2, ffn=64, n_mels=80),
    codec=CodecSize(levels=(3,) * 4, width=32, blocks=1),
    vocoder=VocoderSize(dim=32, depth=2, heads=2, head_dim=16, lookahead_width=32, base_channels=32, f0_channels=32),
    text_tokens=500,
)

# A codec and a vocoder whose recipe a CPU can show in minutes; the language half is nano's.
SMALL = dataclasses.replace(
    NANO,
    name="small",
    codec=CodecSize(levels=(3,) * 8, width=160, blocks=2),
    vocoder=VocoderSize(dim=128, depth=4, heads=2, head_dim=64, lookahead_width=128, base_channels=64, f0_channels=128),
)

# The released model's STFT (16, 4) behind stages that begin at a higher rate, and fewer, shorter blocks: on a CPU this
# learns several times faster for the time it takes (docs/NOTES.md).
WIDE_TRUNK = TrunkSpec(
    upsample_rates=(4, 5, 6),
    upsample_kernels=(8, 10, 12),
    resblock_kernels=(7,),
    resblock_dilations=(1, 3),
    source_resblock_kernels=(3, 3, 7),
    source_resblock_dilations=(1,),
    noise_sigma=0.01,
    voiced_threshold_hz=60,  # the voice does not go below 70 Hz, and predicted f0 is seldom 0 where there is no voice
)

# What two cores of a CPU with bfloat16 train in hours; the codec is small's.
POCKET = dataclasses.replace(
    SMALL,
    name="pocket",
    vocoder=dataclasses.replace(
        SMALL.vocoder,
        dim=192,
        heads=3,
        lookahead_width=192,
        base_channels=256,
        cfg_rate=0.0,  # its flow's last training goes through the sampler without guidance (`flow --sampled`)
        trunk=WIDE_TRUNK,
    ),
    text=StackSpec(
        hidden=256, layers=6, heads=4, kv_heads=2, head_dim=64, intermediate=768, rope_theta=1e5, max_positions=2048
    ),
    head=StackSpec(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=768, rope_theta=1e5),
)

PRESETS: Mapping[str, Settings] = {settings.name: settings for settings in (NANO, POCKET, SMALL, TINY)}
