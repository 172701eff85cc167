"""The golden vocoder folder as a bundle, opened once; and one with little noise and other sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint, read_vocoder
from edge_sdk.flow import Flow, FlowSettings
from edge_sdk.waveform import Waveform
from tests.vocoder import goldens
from tests.vocoder.bundles import export_folder
from tests.vocoder.folders import Sizes, write_folder


@pytest.fixture(scope="session")
def tiny_source() -> VocoderCheckpoint:
    return read_vocoder(goldens.TINY)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    target = tmp_path_factory.mktemp("vocoder") / "tiny.bundle"
    with Bundle.open(export_folder(goldens.TINY, target, {"zh_female": goldens.VOICE})) as bundle:
        yield bundle


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Blocks of 8 frames and noise for 40 of them and a bit: what takes minutes elsewhere takes seconds here."""
    folder = tmp_path_factory.mktemp("vocoder")
    source = write_folder(folder / "source", Sizes(chunk_tokens=4, position_kernel=5), seed=1)
    path = export_folder(source, folder / "small.bundle", {"a": source / "voice.npy"}, noise_frames=325)
    with Bundle.open(path) as bundle:
        yield bundle


@pytest.fixture(scope="session")
def tiny_flow(tiny_bundle: Bundle) -> Flow:
    vocoder = tiny_bundle.manifest.vocoder
    assert vocoder
    return Flow(tiny_bundle.runtime(), vocoder.flow, tiny_bundle.read_array(tiny_bundle.manifest.noise))


@pytest.fixture(scope="session")
def tiny_waveform(tiny_bundle: Bundle) -> Waveform:
    vocoder = tiny_bundle.manifest.vocoder
    assert vocoder
    return Waveform(tiny_bundle.runtime(), vocoder.waveform)


@pytest.fixture
def exact() -> FlowSettings:
    """How the goldens were made: ten steps, the Chinese female voice, all of the context."""
    return FlowSettings(goldens.voice(), steps=10, cfg_rate=0.7, context_frames=None)
