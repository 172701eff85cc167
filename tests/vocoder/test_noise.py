"""The seeded noises, drawn without torch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edge_sdk.errors import ExportError
from edge_sdk.excitation import noise_generator, uniform_noise
from edge_sdk.export.noise import UPSTREAM_FRAMES, initial_noise, torch_normal
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint
from tests.tolerances import NOISE_ABS
from tests.vocoder import goldens


def test_initial_noise_is_the_released_one() -> None:
    stride = goldens.index()["strides"]["rand_noise"]["rand_noise"]
    expected = goldens.arrays("rand_noise")["rand_noise"]
    found = initial_noise(len(expected), 1500)
    assert found.shape == (80, 1500) and found.dtype == np.float32
    assert np.abs(found[:, ::stride] - expected).max() < NOISE_ABS


def test_columns_do_not_depend_on_how_many_are_kept() -> None:
    np.testing.assert_array_equal(initial_noise(80, 7), initial_noise(80, 300)[:, :7])


@pytest.mark.parametrize("frames", [0, -1, UPSTREAM_FRAMES + 1])
def test_columns_there_are_not(frames: int) -> None:
    with pytest.raises(ExportError, match="1 to 15000 columns"):
        initial_noise(80, frames)


@pytest.mark.parametrize("count", [16, 17, 31, 32, 33, 1000])
def test_like_torch_and_leaving_the_generator_where_torch_does(count: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    expected, after = torch.randn(count).numpy(), torch.rand(4).numpy()
    generator = np.random.RandomState(3)
    assert np.abs(torch_normal(generator, count) - expected).max() < NOISE_ABS
    np.testing.assert_array_equal(uniform_noise(generator, 4), after)


def test_few_values_are_refused() -> None:
    with pytest.raises(ExportError, match="fewer than 16"):
        torch_normal(np.random.RandomState(0), 15)


def test_excitation_noise_begins_where_upstream_begins(tiny_source: VocoderCheckpoint) -> None:
    expected = goldens.index()["noise"]
    found = uniform_noise(noise_generator(tiny_source.waveform), 9 * 480)
    np.testing.assert_array_equal(found[:18], np.asarray(expected["source_noise_first18"], np.float32))
    assert hashlib.sha256(found.tobytes()).hexdigest() == expected["source_noise_sha256_first_4320_float32"]
