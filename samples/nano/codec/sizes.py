"""Sizes of the vocoder to train: read back from the cosyvoice3.yaml that will be written, by the exporter's own reader.

So a model that trains here has by construction a configuration that `edge-sdk export` takes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.config import FlowConfig, WaveformConfig
from edge_sdk.export.random_checkpoint.specs import VocoderSpec
from edge_sdk.export.random_checkpoint.vocoder_yaml import vocoder_yaml
from edge_sdk.export.vocoder_hyperparameters import read_hyperparameters


@dataclass(frozen=True)
class VocoderSizes:
    """`flow.position_kernel` is set; what only an export knows (steps, noise) is not."""

    flow: FlowConfig
    waveform: WaveformConfig
    ff_dim: int
    lookahead_width: int
    position_groups: int
    time_features: int


def vocoder_sizes(spec: VocoderSpec) -> VocoderSizes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cosyvoice3.yaml"
        path.write_text(vocoder_yaml(spec), encoding="utf-8")
        found = read_hyperparameters(path)
    return VocoderSizes(
        flow=dataclasses.replace(found.flow, position_kernel=spec.position_kernel),
        waveform=found.waveform,
        ff_dim=found.ff_dim,
        lookahead_width=found.lookahead_width,
        position_groups=spec.position_groups,
        time_features=spec.time_features,
    )
