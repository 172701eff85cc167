"""The vocoder half of an export: a vocoder folder and voices -> graphs, noise, description."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edge_sdk.config import VocoderConfig
from edge_sdk.export.graphs.blocks import Tensors
from edge_sdk.export.graphs.builder import GraphBuilder
from edge_sdk.export.graphs.flow import build_flow, build_flow_tokens
from edge_sdk.export.graphs.waveform import build_f0, build_waveform
from edge_sdk.export.noise import UPSTREAM_FRAMES, check_frames, initial_noise
from edge_sdk.export.recipe import Policy
from edge_sdk.export.vocoder_checkpoint import DEFAULT_STEPS, VocoderCheckpoint, read_vocoder
from edge_sdk.export.voices import known_voices, pick_voice, voice_file

NOISE_NAME = "noise.npy"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class VocoderPart:
    """What the bundle takes from a vocoder folder.

    Attributes:
        config: for the manifest; `config.voices` names the file of every voice.
        graphs: "flow_tokens", "flow", "f0", "waveform". Weights are read from the folder while graphs are written.
        voices: name -> float32 [speaker_dim].
        noise: makes the flow's initial noise, float32 [n_mels, noise_frames], for the file `noise_name`.
    """

    config: VocoderConfig
    graphs: dict[str, GraphBuilder]
    voices: dict[str, Array]
    noise: Callable[[], Array]
    noise_name: str = NOISE_NAME


def load_vocoder(
    folder: str | os.PathLike[str],
    voices: Mapping[str, str | os.PathLike[str]],
    noise_frames: int = UPSTREAM_FRAMES,
    *,
    steps: tuple[int, ...] = DEFAULT_STEPS,
    policy: Policy | None = None,
) -> VocoderPart:
    """Check a vocoder folder and its voices completely, then describe the graphs.

    Args:
        voices: name -> .npy or .pt file with its embedding (FILE:ENTRY for one entry of a table); the first is the
            default voice. Those in the folder's `voices` and upstream's `zh_female` come along.
        noise_frames: columns of the initial noise that the bundle carries (50 a second in the released model);
            streams restart their caches behind them.
        steps: Euler step counts the bundle has tables for.
        policy: how linear layers, tables and convolutions are stored; float32 without one.
    Raises:
        CheckpointError: everything that does not fit, in one message for the folder and one for a voice.
    """
    check_frames(noise_frames)  # now: the noise is made when all else is written
    source = read_vocoder(folder, steps=steps, noise_frames=noise_frames)
    dim = source.flow.speaker_dim
    named = {**known_voices(source.path, dim), **voices}
    order = [*voices, *(name for name in named if name not in voices)]
    embeddings = {name: pick_voice(named[name], name, dim) for name in order}
    config = VocoderConfig(
        flow=source.flow,
        waveform=source.waveform,
        voices={name: voice_file(name) for name in embeddings},
        default_voice=next(iter(embeddings), ""),
    )
    noise = partial(initial_noise, source.flow.n_mels, noise_frames)
    return VocoderPart(config, build_vocoder(source, policy), embeddings, noise)


def build_vocoder(source: VocoderCheckpoint, policy: Policy | None = None) -> dict[str, GraphBuilder]:
    """The four graphs of a checked folder. Of the waveform part only convolutions can be narrow, and no activation:
    f0 and phase add errors up over the whole reply."""
    policy = policy or Policy()
    flow = Tensors(source.flow_weights.shapes, source.flow_weights.read, policy)
    hift = Tensors(source.waveform_weights.shapes, source.waveform_weights.read, policy)
    return {
        "flow_tokens": build_flow_tokens(source.flow, flow),
        "flow": build_flow(source.flow, flow),
        "f0": build_f0(source.waveform, hift),
        "waveform": build_waveform(source.waveform, hift),
    }
