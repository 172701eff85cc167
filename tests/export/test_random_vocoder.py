"""Random vocoders: the exporter takes them, and what they compute has the levels of speech whatever seed and size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ExportError
from edge_sdk.export.random_checkpoint import PRESETS, VocoderSpec, write_vocoder_checkpoint
from edge_sdk.export.reference.flow import FlowReference
from edge_sdk.export.reference.waveform import WaveformReference
from edge_sdk.export.vocoder_checkpoint import read_vocoder
from tests.tolerances import (
    RANDOM_CLIPPED_SHARE,
    RANDOM_F0_HZ,
    RANDOM_F0_STD_HZ,
    RANDOM_GUIDANCE_RMS,
    RANDOM_MEL_MEAN,
    RANDOM_MEL_STD,
    RANDOM_SPEAKER_RMS,
    RANDOM_VOICED,
    RANDOM_WAVE_RMS,
)

SMALL = VocoderSpec(
    codes=40,
    dim=32,
    depth=1,
    heads=3,
    head_dim=8,
    lookahead_width=12,
    base_channels=16,
    f0_channels=24,
    ff_mult=3,
    time_features=32,
    position_kernel=9,
    position_groups=8,
    voices=("low", "high"),
)


def spec_of(preset: str) -> VocoderSpec:
    spec = PRESETS[preset].vocoder
    assert spec is not None
    return spec


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def within(value: float, bounds: tuple[float, float], what: str) -> None:
    assert bounds[0] <= value <= bounds[1], f"{what} is {value:.4g}, expected {bounds}"


def speak(folder: Path, voice: str, tokens: int) -> dict[str, Any]:
    """What the plain references make of random tokens."""
    vocoder = read_vocoder(folder, noise_frames=2 * tokens)
    flow = FlowReference(vocoder.flow, vocoder.flow_weights.read)
    waveform = WaveformReference(vocoder.waveform, vocoder.waveform_weights.read)
    rng = np.random.default_rng(0)
    mu = flow.tokens(rng.integers(0, vocoder.flow.codebook_size, tokens))["mu"]
    speaker = flow.speaker(np.load(folder / "voices" / f"{voice}.npy"))
    noise = np.asarray(rng.standard_normal(mu.shape), np.float32)
    path = flow.sample(mu, speaker, noise, steps=4, cfg_rate=vocoder.flow.cfg_rate)
    mel = path[-1]["x_out"].T
    f0 = waveform.f0(mel)
    excitation = waveform.harmonics(f0, rng.random((480 * mel.shape[1], 9), dtype=np.float32))
    return {
        "mel": mel,
        "speaker": speaker,
        "f0": f0,
        "voiced": excitation["uv"],
        "wave": waveform.trunk(mel, excitation["source"])["wav"],
        "guidance": path[2]["velocity"][0] - path[2]["velocity"][1],
    }


@pytest.mark.parametrize(("preset", "seed"), [("demo", 1), ("demo", 2), ("demo", 3), ("tiny", 1), ("tiny", 2)])
def test_the_levels_are_those_of_speech(preset: str, seed: int, tmp_path: Path) -> None:
    spec = spec_of(preset)
    write_vocoder_checkpoint(tmp_path / "v", spec, seed)
    made = speak(tmp_path / "v", spec.voices[0], 40)
    assert all(np.isfinite(value).all() for value in made.values())
    within(made["mel"].mean(), RANDOM_MEL_MEAN, "mel mean")
    within(made["mel"].std(), RANDOM_MEL_STD, "mel deviation")
    within(float(np.sqrt((made["speaker"] ** 2).mean())), RANDOM_SPEAKER_RMS, "speaker condition")
    within(float(np.sqrt((made["guidance"] ** 2).mean())), RANDOM_GUIDANCE_RMS, "guidance difference")
    within(made["f0"].mean(), RANDOM_F0_HZ, "mean f0")
    within(made["f0"].std(), RANDOM_F0_STD_HZ, "f0 deviation")
    within(made["voiced"].mean(), RANDOM_VOICED, "voiced share")
    within(made["wave"].std(), RANDOM_WAVE_RMS, "wave RMS")
    assert (np.abs(made["wave"]) >= 0.99).mean() <= RANDOM_CLIPPED_SHARE


def test_the_exporter_reads_back_what_the_spec_says(tmp_path: Path) -> None:
    write_vocoder_checkpoint(tmp_path / "v", SMALL, 1)
    vocoder = read_vocoder(tmp_path / "v", noise_frames=100)
    flow, waveform = vocoder.flow, vocoder.waveform
    assert (flow.codebook_size, flow.dim, flow.depth, flow.heads, flow.head_dim) == (40, 32, 1, 3, 8)
    assert (flow.n_mels, flow.position_kernel, flow.chunk_frames, flow.cfg_rate) == (80, 9, 50, 0.7)
    assert (waveform.base_channels, waveform.f0_channels, waveform.samples_per_frame) == (16, 24, 480)
    shapes = vocoder.flow_weights.shapes
    assert shapes["pre_lookahead_layer.conv1.weight"] == (12, 80, 4)
    assert shapes["decoder.estimator.transformer_blocks.0.ff.ff.0.0.weight"] == (96, 32)
    assert shapes["decoder.estimator.time_embed.time_mlp.0.weight"] == (32, 32)
    frequencies = vocoder.flow_weights.read("decoder.estimator.rotary_embed.inv_freq")
    assert frequencies.tolist() == np.float32(10000.0 ** (-np.arange(4) / 4)).tolist()


def test_gates_are_open(tmp_path: Path) -> None:
    write_vocoder_checkpoint(tmp_path / "v", SMALL, 1)
    bias = read_vocoder(tmp_path / "v", noise_frames=10).flow_weights.read(
        "decoder.estimator.transformer_blocks.0.attn_norm.linear.bias"
    )
    means = bias.reshape(6, 32).mean(axis=1)
    assert (means[[2, 5]] > 0.4).all()
    assert (np.abs(means[[0, 1, 3, 4]]) < 0.1).all()


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_vocoder_checkpoint(tmp_path / name, SMALL, seed)
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert set(first) == {
        "cosyvoice3.yaml",
        "flow.safetensors",
        "hift.safetensors",
        "voices/low.npy",
        "voices/high.npy",
    }
    assert first == again
    assert {name for name in first if first[name] == other[name]} == {"cosyvoice3.yaml"}


def test_voices_differ_and_have_the_norm_of_real_ones(tmp_path: Path) -> None:
    write_vocoder_checkpoint(tmp_path / "v", SMALL, 1)
    voices = [np.load(tmp_path / "v" / "voices" / f"{name}.npy", allow_pickle=False) for name in SMALL.voices]
    for voice in voices:
        assert (voice.dtype, voice.shape) == (np.float32, (192,))
        assert abs(np.linalg.norm(voice) - 12) < 0.001
    assert np.corrcoef(*voices)[0, 1] < 0.5


@pytest.mark.parametrize("change", [{"dim": 50}, {"base_channels": 20}, {"head_dim": 7}])
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ExportError, match="a vocoder needs"):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="exists and is not an empty folder"):
        write_vocoder_checkpoint(tmp_path / "v", SMALL, 1)
    assert files_of(tmp_path) == {"v/mine.txt": b"keep"}
