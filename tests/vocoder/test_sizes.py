"""Other checkpoints of the family: every size may differ, and graphs still equal the NumPy reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.excitation import noise_generator, uniform_noise
from edge_sdk.export.parity_vocoder import compare_vocoder
from edge_sdk.export.reference.flow import FlowReference, chunk_mask
from edge_sdk.export.reference.waveform import WaveformReference
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint, read_vocoder
from edge_sdk.flow_stream import FlowStream
from edge_sdk.vocoder import Vocoder
from edge_sdk.waveform import WaveformStream
from tests.tolerances import CHANGED_ABS, FLOAT32_ERROR_RATIO, FLOW_MEL_ABS, relative
from tests.vocoder.bundles import export_folder
from tests.vocoder.folders import Sizes, write_folder

Array = np.ndarray[Any, Any]
STEPS = (3, 2)

CASES = {
    "three heads of 32, deeper": Sizes(dim=96, heads=3, head_dim=32, depth=3, base_channels=32),
    "heads that need padding": Sizes(dim=24, heads=3, head_dim=10, depth=2),
    "head size no multiple of four, one head": Sizes(dim=32, heads=1, head_dim=6, ff_mult=3),
    "attention narrower than the model": Sizes(dim=48, heads=2, head_dim=16, position_groups=1),
    "blocks of 10 frames, other lookahead": Sizes(chunk_tokens=5, lookahead=2, lookahead_kernel=5, position_kernel=4),
    "three frames a token": Sizes(frames_per_token=3, chunk_tokens=7, token_rate=10, mels=9),
    "no context in the lookahead's second convolution": Sizes(lookahead_kernel=1, position_kernel=1),
    "two stages": Sizes(rates=(4, 6), kernels=(9, 6), source_kernels=(3, 5), harmonics=4, hop=2, n_fft=8),
    "four stages, other kernels": Sizes(
        rates=(2, 2, 3, 2), kernels=(3, 4, 8, 5), source_kernels=(3, 7, 5, 3), base_channels=32,
        resblock_kernels=(3, 5), dilations=(1, 2), n_fft=12, hop=3,
    ),
    "a window of three hops": Sizes(rates=(5, 3), kernels=(8, 5), source_kernels=(3, 3), n_fft=12, hop=4),
    "other looks to the right": Sizes(look_right=6, f0_first_kernel=7, f0_kernel=5, post_kernel=3),
    "a phase that runs": Sizes(running_phase=True, harmonics=5),
    "f0 looks further than the trunk": Sizes(look_right=1, f0_first_kernel=6),
    "no guidance": Sizes(cfg_rate=0, depth=2),
    "no guidance, heads that need padding": Sizes(cfg_rate=0, dim=24, heads=3, head_dim=10),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_graphs_equal_the_reference(case: str, tmp_path: Path) -> None:
    sizes = CASES[case]
    folder = write_folder(tmp_path / "source", sizes, seed=len(case))
    path = export_folder(folder, tmp_path / "bundle", {"a": folder / "voice.npy"}, noise_frames=400, steps=STEPS)
    source = read_vocoder(folder, steps=STEPS, noise_frames=400)
    ids = np.random.default_rng(1).integers(0, sizes.codes, sizes.chunk_tokens * 2 + 5)
    with Bundle.open(path) as bundle:
        vocoder = Vocoder(bundle, steps=2, context_s=None)
        frames, block = len(ids) * sizes.frames_per_token, sizes.chunk_tokens * sizes.frames_per_token
        for found, mask in ((whole(vocoder, ids), None), (streamed(vocoder, ids), chunk_mask(frames, block))):
            single, double = (reference_mel(source, bundle, ids, mask, dtype) for dtype in (np.float32, np.float64))
            assert as_exact(found, single, double)
        stream = WaveformStream(vocoder._waveform, 7)
        pcm = np.concatenate([stream.push(single[:9]), stream.push(single[9:]), stream.finish()])
        assert as_exact(pcm, *(reference_sound(source, single, dtype) for dtype in (np.float32, np.float64)))
        assert len(vocoder.synthesize(ids)) == len(ids) * vocoder.samples_per_token
        assert vocoder.sample_rate == sizes.sample_rate


def test_a_vocoder_without_guidance_computes_half(tmp_path: Path) -> None:
    """The row without condition is neither computed nor cached, and no rate brings it back."""
    mels, caches = [], []
    for rate in (0.0, 0.7):
        folder = write_folder(tmp_path / f"source {rate}", Sizes(cfg_rate=rate), seed=1)
        path = export_folder(folder, tmp_path / f"bundle {rate}", {"a": folder / "voice.npy"}, noise_frames=400)
        with Bundle.open(path) as bundle:
            bundle.verify()
            assert all(stage.ok for stage in compare_vocoder(bundle, folder))
            ids = np.arange(30) % Sizes().codes
            mels.append([whole(Vocoder(bundle, steps=4, cfg_rate=asked), ids) for asked in (0.0, 0.7)])
            vocoder = Vocoder(bundle, steps=4)
            caches.append(FlowStream(vocoder._flow, vocoder._settings).nbytes)
    (without, unmoved), (plain, guided) = mels
    np.testing.assert_array_equal(without, unmoved)
    assert np.abs(plain - guided).max() > CHANGED_ABS
    assert np.abs(without - plain).max() < FLOW_MEL_ABS
    assert 1.9 < caches[1] / caches[0] <= 2


def whole(vocoder: Vocoder, ids: Array) -> Array:
    return vocoder._flow.whole(ids, vocoder._settings)


def streamed(vocoder: Vocoder, ids: Array) -> Array:
    stream = FlowStream(vocoder._flow, vocoder._settings)
    return np.concatenate([*(stream.push(ids[i : i + 3]) for i in range(0, len(ids), 3)), stream.finish()])


def reference_mel(source: VocoderCheckpoint, bundle: Bundle, ids: Array, mask: Array | None, dtype: Any) -> Array:
    reference = FlowReference(source.flow, source.flow_weights.read, dtype)
    mu, speaker = reference.tokens(ids)["mu"], reference.speaker(bundle.voice())
    noise = bundle.read_array(bundle.manifest.noise).T[: len(mu)]
    return reference.sample(mu, speaker, noise, steps=2, cfg_rate=source.flow.cfg_rate, mask=mask)[-1]["x_out"]


def reference_sound(source: VocoderCheckpoint, mel: Array, dtype: Any) -> Array:
    config = source.waveform
    reference = WaveformReference(config, source.waveform_weights.read, dtype)
    noise = uniform_noise(noise_generator(config), len(mel) * config.samples_per_frame * (config.harmonics + 1))
    excitation = reference.harmonics(reference.f0(mel.T), noise.reshape(-1, config.harmonics + 1))
    return reference.trunk(mel.T, excitation["source"])["wav"]


def as_exact(found: Array, single: Array, double: Array) -> bool:
    """The graph's error is like that of the plain float32 computation, both against float64."""
    assert found.shape == double.shape
    return relative(found, double) < FLOAT32_ERROR_RATIO * relative(single, double)
