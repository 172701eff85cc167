"""The NumPy references against the recordings of the released code, stage by stage with recorded inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edge_sdk.excitation import noise_generator, uniform_noise
from edge_sdk.export.reference.flow import FlowReference, chunk_mask
from edge_sdk.export.reference.waveform import WaveformReference
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint
from tests import tolerances
from tests.vocoder import goldens

DTYPES = (np.float32, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flow(tiny_source: VocoderCheckpoint, dtype: Any) -> None:
    case, golden = "offline_40", goldens.arrays("offline_40")
    reference = FlowReference(tiny_source.flow, tiny_source.flow_weights.read, dtype)
    front = reference.tokens(goldens.tokens(case))
    assert goldens.difference(case, "lookahead_out", front["lookahead_out"]) < tolerances.LOOKAHEAD_ABS
    speaker = reference.speaker(goldens.voice())
    assert goldens.difference(case, "spk_proj", speaker) < tolerances.LOOKAHEAD_ABS

    mu = np.repeat(golden["lookahead_out"], 2, axis=0).astype(dtype)
    condition = golden["spk_proj"].astype(dtype)
    for step in (0, 9):
        x = reference_noise(tiny_source, len(mu)) if step == 0 else golden["step9_x_in"].T
        out = reference.estimate(x.astype(dtype), mu, condition, float(golden["t_used"][step]))
        assert goldens.relative(case, f"step{step}_time_embedding", out["time_embedding"]) < tolerances.VELOCITY_ABS
        velocity = out["velocity"].transpose(0, 2, 1)
        assert goldens.difference(case, f"step{step}_estimator_out", velocity) < tolerances.VELOCITY_ABS
        if step == 0:
            for name in ("input_embed_out", "block0_out", "norm_out"):
                assert goldens.difference(case, f"step0_{name}", out[name]) < tolerances.VELOCITY_ABS
            assert goldens.difference(case, "step0_last_block_out", out["block1_out"]) < tolerances.VELOCITY_ABS


@pytest.mark.parametrize(("case", "masked"), [("offline_40", False), ("offline_40", True), ("offline_137", True)])
def test_mel(tiny_source: VocoderCheckpoint, case: str, masked: bool) -> None:
    reference = FlowReference(tiny_source.flow, tiny_source.flow_weights.read)
    mu = reference.tokens(goldens.tokens(case))["mu"]
    mask = chunk_mask(len(mu), 50) if masked else None
    noise = reference_noise(tiny_source, len(mu))
    path = reference.sample(mu, reference.speaker(goldens.voice()), noise, steps=10, cfg_rate=0.7, mask=mask)
    name = "mel_chunkmask" if masked else "mel"
    assert goldens.difference(case, name, path[-1]["x_out"].T) < tolerances.FLOW_MEL_ABS
    if case == "offline_40" and not masked:
        states = np.stack([step["x_out"].T for step in path])
        assert goldens.difference(case, "x_after_each_step", states) < tolerances.FLOW_MEL_ABS


def test_chunk_mask() -> None:
    mask = chunk_mask(7, 2, context_blocks=1)
    assert ["".join(".x"[seen] for seen in row) for row in mask.tolist()] == [
        "xx.....", "xx.....", "xxxx...", "xxxx...", "..xxxx.", "..xxxx.", "....xxx",
    ]  # fmt: skip
    assert chunk_mask(7, 2)[6].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["offline_40", "offline_137"])
def test_waveform(tiny_source: VocoderCheckpoint, case: str, dtype: Any) -> None:
    golden, config = goldens.arrays(case), tiny_source.waveform
    reference = WaveformReference(config, tiny_source.waveform_weights.read, dtype)
    mel, f0 = golden["mel"], golden["f0"]
    assert goldens.difference(case, "f0", reference.f0(mel)) < tolerances.F0_HZ
    noise = uniform_noise(noise_generator(config), len(f0) * config.samples_per_frame * 9).reshape(-1, 9)
    excitation = reference.harmonics(f0, noise)
    out = reference.trunk(mel, excitation["source"])
    assert goldens.difference(case, "wav", out["wav"]) < tolerances.SAMPLES_ABS
    if case == "offline_40":
        np.testing.assert_array_equal(excitation["uv"], golden["uv"])
        assert goldens.difference(case, "sine_per_frame", excitation["sine_per_frame"]) < tolerances.SINE_ABS
        assert goldens.difference(case, "source", excitation["source"]) < tolerances.SOURCE_ABS
        for name in (
            "source_stft",
            "conv_pre_out",
            "ups0_out",
            "ups1_out",
            "ups2_out",
            "source_branch0_out",
            "conv_post_out",
        ):
            assert goldens.relative(case, name, out[name]) < tolerances.WAVEFORM_STAGE_RELATIVE


def test_istft_inverts_stft(tiny_source: VocoderCheckpoint) -> None:
    reference = WaveformReference(tiny_source.waveform, tiny_source.waveform_weights.read, np.float64)
    signal = np.sin(np.arange(960) * math.pi / 37)
    real, imaginary = np.split(reference.stft(signal), 2)
    assert tolerances.relative(reference.istft(real + 1j * imaginary), signal) < tolerances.FOLD_FLOAT64_RELATIVE


def reference_noise(source: VocoderCheckpoint, frames: int) -> np.ndarray[Any, Any]:
    from edge_sdk.export.noise import initial_noise

    return initial_noise(source.flow.n_mels, frames).T
