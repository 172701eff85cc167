"""The sizes an engine is built for: per graph one or two optimization profiles over its named dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_sdk.config import FlowConfig, ModelConfig, VocoderConfig
from edge_sdk.errors import ExportError
from edge_sdk.manifest import FUSED_GRAPH, Manifest
from edge_sdk.tensors import TensorSpec

Range = tuple[int, int, int]  # least, usual, most

PREFILL_ROWS = 256  # most positions of one prefill call (edge_sdk/context.py)
HEAD_PREFILL_POSITIONS = 64  # and of the speech head's (edge_sdk/speech_head.py)
_WAVEFORM_BLOCKS = 2  # most blocks of frames in one call of the vocoder's waveform


@dataclass(frozen=True)
class Profile:
    """One way an engine is run.

    Attributes:
        name: "prefill", "decode" or "any".
        dims: named dimension -> range.
        values: input whose value sets a size -> range of that value.
    """

    name: str
    dims: Mapping[str, Range]
    values: Mapping[str, Range] = field(default_factory=dict)

    def shapes(self, spec: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """(least, usual, most) shape of an input."""
        unknown = [d for d in spec.shape if isinstance(d, str) and d not in self.dims]
        if unknown:
            raise ExportError(f"no range is known for dimension '{unknown[0]}' of input '{spec.name}'")
        return tuple(tuple(self.dims[d][i] if isinstance(d, str) else d for d in spec.shape) for i in range(3))

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "dims": {k: list(v) for k, v in self.dims.items()},
            "values": {k: list(v) for k, v in self.values.items()},
        }


@dataclass(frozen=True)
class Capacities:
    """Fixed sizes of the caches, since an in-place cache cannot be of any size.

    Args:
        context_tokens: backbone positions of a conversation; the speech head gets group_size times as many.
        vocoder_frames: frames the flow's caches hold.
    """

    context_tokens: int
    vocoder_frames: int

    def of(self, key: str, manifest: Manifest) -> dict[str, int]:
        """Named dimensions of graph `key` that are fixed."""
        size = manifest.model.group_size if manifest.model else 1
        rows = {
            "backbone": self.context_tokens,
            "speech_head": self.context_tokens * size,
            FUSED_GRAPH: self.context_tokens * size,
            "flow": self.vocoder_frames,
        }
        return {"capacity": rows[key]} if key in rows else {}


def capacities(manifest: Manifest, context_tokens: int, vocoder_context_s: float) -> Capacities:
    """Sizes for conversations of `context_tokens` positions and a streaming vocoder that sees so many seconds."""
    if context_tokens < 1 or vocoder_context_s < 0:
        raise ExportError(f"context must be positive, got {context_tokens} tokens and {vocoder_context_s} s")
    frames = 0
    if manifest.vocoder:
        flow = manifest.vocoder.flow
        chunks = -(-int(vocoder_context_s * flow.frame_rate_hz) // flow.chunk_frames) + 1
        frames = min(chunks * flow.chunk_frames, flow.noise_frames // flow.chunk_frames * flow.chunk_frames)
    return Capacities(context_tokens, frames)


def merged(profiles: list[Profile]) -> list[Profile]:
    """One profile over all of them, tuned for the last. Each further profile may cost a second copy of weights."""
    usual = profiles[-1].dims
    dims = {
        name: (min(p.dims[name][0] for p in profiles), usual[name][1], max(p.dims[name][2] for p in profiles))
        for name in usual
    }
    return [Profile("any", dims, profiles[-1].values)]


def profiles_of(key: str, manifest: Manifest, sizes: Capacities) -> list[Profile]:
    """The profiles of graph `key`, the narrowest last."""
    if manifest.model and key in _LANGUAGE:
        return _LANGUAGE[key](manifest.model, sizes)
    if manifest.vocoder and key in _VOCODER:
        return _VOCODER[key](manifest.vocoder, sizes)
    raise ExportError(f"no sizes are known for graph '{key}': this build-engine is older than the bundle")


def _encoder(model: ModelConfig, sizes: Capacities) -> list[Profile]:
    window, size = model.encoder.window_frames, model.group_size
    pairs = (model.encoder.n_window + 2 * size) // 2
    groups = pairs // size
    dims = {"frames": (1, window, window), "carried": (0, 0, 2 * size)}
    values = {"pairs": (0, groups * size, pairs), "groups": (0, groups, max(groups, sizes.context_tokens))}
    return [Profile("any", dims, values)]


def _backbone(model: ModelConfig, sizes: Capacities) -> list[Profile]:
    rows = min(PREFILL_ROWS, sizes.context_tokens)
    table = (1, sizes.context_tokens, sizes.context_tokens)
    usual = min(64, rows)
    prefill = {"S": (1, usual, rows), "N": (0, usual // 2, rows), "M": (0, 0, rows), "positions": table}
    decode = {"S": (1, 1, 1), "N": (0, 0, 0), "M": (0, 1, 1), "positions": table}
    return [Profile("prefill", prefill), Profile("decode", decode)]


def _speech_input(model: ModelConfig, sizes: Capacities) -> list[Profile]:
    return [
        Profile("prefill", {"S": (1, HEAD_PREFILL_POSITIONS, HEAD_PREFILL_POSITIONS)}),
        Profile("decode", {"S": (1, 1, 1)}),
    ]


def _speech_head(model: ModelConfig, sizes: Capacities) -> list[Profile]:
    capacity = sizes.context_tokens * model.group_size
    rows = min(HEAD_PREFILL_POSITIONS * model.group_size, capacity)
    table = (1, capacity, capacity)
    return [
        Profile("prefill", {"R": (1, rows, rows), "positions": table}),
        Profile("decode", {"R": (1, 1, 1), "positions": table}),
    ]


def _speech_head_plugin(model: ModelConfig, sizes: Capacities) -> list[Profile]:
    """As one plugin layer: the size of its input `kind` says what a call does."""
    return [
        Profile("prefill", {"S": (1, HEAD_PREFILL_POSITIONS, HEAD_PREFILL_POSITIONS), "kind": (1, 1, 1)}),
        Profile("decode", {"S": (1, 1, 1), "kind": (2, 2, 2)}),
    ]


def _flow_tokens(vocoder: VocoderConfig, sizes: Capacities) -> list[Profile]:
    flow = vocoder.flow
    usual, most = (_tokens(flow, frames) for frames in (flow.chunk_frames, sizes.vocoder_frames))
    return [Profile("any", {"ids": (1 + flow.lookahead_tokens, usual, max(usual, most))})]


def _tokens(flow: FlowConfig, frames: int) -> int:
    return frames // flow.frames_per_token + flow.lookahead_tokens


def _flow(vocoder: VocoderConfig, sizes: Capacities) -> list[Profile]:
    chunk = min(vocoder.flow.chunk_frames, sizes.vocoder_frames)
    return [Profile("any", {"frames": (1, chunk, sizes.vocoder_frames)})]


def _waveform(vocoder: VocoderConfig, sizes: Capacities) -> list[Profile]:
    c, chunk = vocoder.waveform, vocoder.flow.chunk_frames
    frames = (1, chunk, _WAVEFORM_BLOCKS * chunk)
    # The first call of a stream has a hop more of excitation than a later one; "most" is a first call.
    source = [f * c.samples_per_frame + c.stft_n_fft for f in frames]
    dims: dict[str, Range] = {
        "mel_frames": (frames[0] + c.lookahead_frames, frames[1] + c.lookahead_frames, frames[2] + c.lookahead_frames),
        "source_samples": (source[0] - c.stft_hop, source[1] - c.stft_hop, source[2]),
    }
    return [Profile("any", dims, {"first": (0, 0, 1)})]


_LANGUAGE = {
    "encoder": _encoder,
    "backbone": _backbone,
    "speech_input": _speech_input,
    "speech_head": _speech_head,
    FUSED_GRAPH: _speech_head_plugin,
}
_VOCODER = {"flow_tokens": _flow_tokens, "flow": _flow, "waveform": _waveform}
