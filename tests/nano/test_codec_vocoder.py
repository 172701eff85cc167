"""The trainable vocoder computes what the exporter's NumPy reference does, and exports as any checkpoint does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install -r samples/nano/requirements.txt")

from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.excitation import noise_generator, uniform_noise  # noqa: E402
from edge_sdk.export.noise import initial_noise  # noqa: E402
from edge_sdk.export.pipeline import ExportOptions, export_bundle  # noqa: E402
from edge_sdk.export.random_checkpoint import write_language_checkpoint, write_vocoder_checkpoint  # noqa: E402
from edge_sdk.export.reference.flow import FlowReference, chunk_mask  # noqa: E402
from edge_sdk.export.reference.waveform import WaveformReference  # noqa: E402
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint, read_vocoder  # noqa: E402
from edge_sdk.flow_stream import FlowStream  # noqa: E402
from edge_sdk.vocoder import Vocoder  # noqa: E402
from edge_sdk.waveform import WaveformStream  # noqa: E402
from samples.nano.codec.checkpoint import speaker, write_vocoder  # noqa: E402
from samples.nano.codec.files import load_tensors  # noqa: E402
from samples.nano.codec.flow import Flow  # noqa: E402
from samples.nano.codec.flow_loss import seen  # noqa: E402
from samples.nano.codec.sizes import vocoder_sizes  # noqa: E402
from samples.nano.codec.waveform import Waveform  # noqa: E402
from samples.nano.settings import TINY, WIDE_TRUNK, Settings  # noqa: E402
from tests import tolerances  # noqa: E402

torch.set_num_threads(1)  # tiny products: more threads only wait for each other

Array = np.ndarray[Any, Any]
WIDE = dataclasses.replace(TINY, vocoder=dataclasses.replace(TINY.vocoder, trunk=WIDE_TRUNK))
TOKENS = 61  # two blocks of the chunk mask and a part of a third


@dataclass(frozen=True)
class Made:
    """A random checkpoint of TINY's sizes, and the trainable models with its tensors."""

    settings: Settings
    folder: Path
    source: VocoderCheckpoint
    flow: Flow
    waveform: Waveform
    ids: Array
    voice: Array


@pytest.fixture(scope="module", params=[TINY, WIDE], ids=["released", "wide"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With the released model's stages, and with the recipe's."""
    settings: Settings = request.param
    folder = tmp_path_factory.mktemp("codec") / "random"
    spec = settings.vocoder_spec()
    write_vocoder_checkpoint(folder, spec, seed=TINY.seed)
    sizes, source = vocoder_sizes(spec), read_vocoder(folder)
    flow, waveform = Flow(sizes), Waveform(sizes)
    load_tensors(folder / "flow.safetensors", flow)
    load_tensors(folder / "hift.safetensors", waveform)
    ids = np.random.default_rng(1).integers(0, spec.codes, TOKENS)
    return Made(settings, folder, source, flow.eval(), waveform.eval(), ids, speaker(TINY, folder.parent))


def batched(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]


def condition(made: Made, ids: Array) -> torch.Tensor:
    """mu [1, 2T, n_mels] of a whole reply."""
    c = made.flow.config
    return made.flow.tokens(batched(np.concatenate([ids, np.full(c.lookahead_tokens, c.codebook_size)])))


def mask_of(frames: int, block: int | None) -> torch.Tensor | None:
    return None if block is None else seen(torch.ones(1, frames, dtype=torch.bool), block)


@torch.no_grad()
def torch_mel(made: Made, ids: Array, block: int | None) -> Array:
    """The flow's mel [2T, n_mels] from upstream's fixed noise, ten steps."""
    mu = condition(made, ids)
    noise = batched(initial_noise(mu.shape[2], mu.shape[1]).T)
    spoken = made.flow.speaker(batched(made.voice))
    mel = made.flow.sample(mu, spoken, noise, steps=10, cfg_rate=0.7, mask=mask_of(mu.shape[1], block))
    return mel[0].numpy()


@torch.no_grad()
def torch_sound(made: Made, mel: Array) -> Array:
    """mel [L, n_mels] -> PCM, f0 in float64 and the excitation's seeded noise as the device has them."""
    c = made.source.waveform
    f0 = copy.deepcopy(made.waveform).double().f0(batched(mel.T.astype(np.float64)))
    width = c.harmonics + 1
    noise = uniform_noise(noise_generator(c), len(mel) * c.samples_per_frame * width).reshape(-1, width)
    return made.waveform(batched(mel.T), f0, batched(noise))[0].numpy()


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_flow_equals_the_reference(made: Made, masked: bool) -> None:
    reference = FlowReference(made.source.flow, made.source.flow_weights.read)
    mu, spoken = reference.tokens(made.ids)["mu"], reference.speaker(made.voice)
    assert np.abs(condition(made, made.ids)[0].numpy() - mu).max() < tolerances.LOOKAHEAD_ABS
    assert np.abs(made.flow.speaker(batched(made.voice))[0].numpy() - spoken).max() < tolerances.LOOKAHEAD_ABS

    block = made.source.flow.chunk_frames if masked else None
    numpy_mask = chunk_mask(len(mu), block) if block else None
    x = initial_noise(mu.shape[1], len(mu)).T
    for t in (0.0, 0.3):
        rows = reference.estimate(x, mu, spoken, t, numpy_mask)["velocity"]
        both = (batched(part).repeat(2, *[1] * part.ndim) for part in (x, mu, spoken))
        state, tokens, voice = both
        tokens[1], voice[1] = 0, 0
        found = made.flow.velocity(state, tokens, voice, torch.full((2,), t), mask_of(len(mu), block))
        assert np.abs(found.numpy() - rows).max() < tolerances.VELOCITY_ABS
    mel = reference.sample(mu, spoken, x, steps=10, cfg_rate=0.7, mask=numpy_mask)[-1]["x_out"]
    assert np.abs(torch_mel(made, made.ids, block) - mel).max() < tolerances.FLOW_MEL_ABS


def test_the_masks_differ(made: Made) -> None:
    whole, masked = (torch_mel(made, made.ids, block) for block in (None, made.source.flow.chunk_frames))
    assert np.abs(whole - masked).max() > tolerances.CHANGED_ABS


@pytest.mark.parametrize("running", [True, False])
@torch.no_grad()
def test_waveform_equals_the_reference(made: Made, running: bool) -> None:
    c = dataclasses.replace(made.source.waveform, running_phase=running)
    made = dataclasses.replace(made, waveform=copy.deepcopy(made.waveform))
    made.waveform.config = dataclasses.replace(made.waveform.config, running_phase=running)
    reference = WaveformReference(c, made.source.waveform_weights.read)
    mel = torch_mel(made, made.ids, None)
    f0 = reference.f0(mel.T)
    double = copy.deepcopy(made.waveform).double()
    assert np.abs(double.f0(batched(mel.T.astype(np.float64)))[0].numpy() - f0).max() < tolerances.F0_HZ
    width = c.harmonics + 1
    noise = uniform_noise(noise_generator(c), len(mel) * c.samples_per_frame * width).reshape(-1, width)
    source = reference.harmonics(f0, noise)["source"]
    found = made.waveform.source(batched(f0), batched(noise))[0].numpy()
    assert np.abs(found - source).max() < tolerances.SOURCE_ABS
    assert np.abs(torch_sound(made, mel) - reference.trunk(mel.T, source)["wav"]).max() < tolerances.SAMPLES_ABS


def test_tensors_are_the_checkpoints(made: Made) -> None:
    """Names and shapes of an untrained model are those that a checkpoint of these sizes has."""
    for model, weights in ((made.flow, made.source.flow_weights), (made.waveform, made.source.waveform_weights)):
        found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert found == weights.shapes


@pytest.fixture(scope="module")
def bundle(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The models written as a recipe writes them, exported beside a random language half of matching sizes."""
    folder = tmp_path_factory.mktemp("exported")
    write_vocoder(folder / "vocoder", made.settings, made.flow, made.waveform)
    write_language_checkpoint(folder / "language", TINY.language_spec(), seed=2)
    path = export_bundle(folder / "language", folder / "vocoder", folder / "nano.bundle", ExportOptions())
    with Bundle.open(path) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["whole", "streaming"])
def test_the_bundle_speaks_as_the_models_do(made: Made, bundle: Bundle, mode: str) -> None:
    vocoder = Vocoder(bundle, mode=mode, context_s=None)
    assert bundle.manifest.vocoder
    assert bundle.manifest.vocoder.default_voice == TINY.voice
    if mode == "whole":
        found, block = vocoder._flow.whole(made.ids, vocoder._settings), None
    else:
        stream, block = FlowStream(vocoder._flow, vocoder._settings), made.source.flow.chunk_frames
        pieces = [stream.push(made.ids[i : i + 7]) for i in range(0, TOKENS, 7)]
        found = np.concatenate([*pieces, stream.finish()])
    mel = torch_mel(made, made.ids, block)
    assert np.abs(found - mel).max() < tolerances.FLOW_MEL_ABS

    sound = torch_sound(made, mel)
    waveform = WaveformStream(vocoder._waveform, 50)
    assert np.abs(np.concatenate([waveform.push(mel), waveform.finish()]) - sound).max() < tolerances.SAMPLES_ABS
    pcm = vocoder.synthesize(made.ids)
    assert len(pcm) == len(sound) == TOKENS * vocoder.samples_per_token
    level, rms = (float(np.sqrt((x.astype(np.float64) ** 2).mean())) for x in (pcm, sound))
    assert rms > tolerances.SOUND_RMS
    assert abs(level / rms - 1) < tolerances.RMS_RELATIVE
