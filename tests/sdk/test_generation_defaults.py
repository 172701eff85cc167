"""What a checkpoint says of how replies are made, from its generation_config.json to Chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError, CheckpointError
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.generation import GenerationConfig
from edge_sdk.vocoder import Vocoder
from tests import speech_goldens as goldens
from tests import tolerances
from tests.vocoder import goldens as vocoder_goldens

SECTION = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 7}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[Any], Path]:
    """The golden checkpoint with this section in its generation_config.json."""

    def made(section: Any) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(goldens.CHECKPOINT, folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "edge_sdk": section}))
        return folder

    return made


def test_a_bundle_says_how_it_replies(checkpoint: Callable[[Any], Path], tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint(SECTION), None, tmp_path / "b.bundle", ExportOptions())
    with Chat(bundle) as chat:
        assert chat.generation == GenerationConfig(**SECTION)
        assert chat.send(text="Hello.").timings.steps <= 7
    mine = GenerationConfig(seed=3)
    with Chat(bundle, generation=mine) as chat:
        assert chat.generation is mine


def test_the_vocoder_alone_sounds_as_in_a_reply(checkpoint: Callable[[Any], Path], tmp_path: Path) -> None:
    """Steps are the bundle's; guidance, where it says none, is the vocoder's own (`inference_cfg_rate`)."""
    vocoder = tmp_path / "vocoder"
    shutil.copytree(vocoder_goldens.TINY, vocoder)
    told = vocoder / "cosyvoice3.yaml"
    text = told.read_text()
    assert "inference_cfg_rate: 0.7" in text
    told.write_text(text.replace("inference_cfg_rate: 0.7", "inference_cfg_rate: 0.3"))
    options = ExportOptions(noise_frames=200)
    voices = {"zh_female": vocoder_goldens.VOICE}
    path = export_bundle(checkpoint({"vocoder_steps": 4}), vocoder, tmp_path / "b.bundle", options, voices=voices)
    ids = np.arange(12)
    with Bundle.open(path) as bundle:
        own = GenerationConfig.of_bundle(bundle)
        assert (own.vocoder_steps, own.cfg_rate) == (4, 0.3)
        sound = Vocoder(bundle).synthesize(ids)
        np.testing.assert_array_equal(sound, Vocoder(bundle, steps=4, cfg_rate=0.3).synthesize(ids))
        assert np.abs(sound - Vocoder(bundle, cfg_rate=0.7).synthesize(ids)).max() > tolerances.CHANGED_ABS
        assert np.abs(sound - Vocoder(bundle, steps=10).synthesize(ids)).max() > tolerances.CHANGED_ABS


def test_one_that_says_nothing_has_the_sdks_own(speech_bundle_path: Path) -> None:
    with Chat(speech_bundle_path) as chat:
        assert chat.generation == GenerationConfig()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"top_q": 1}, "'edge_sdk' of its generation settings holds top_q"),
        (["top_k"], r"holds \['top_k'\]; it is an object of max_new_tokens"),
        ({"top_k": -1}, "cannot be used: GenerationConfig: top_k"),
    ],
)
def test_what_it_must_not_say(section: Any, said: str, checkpoint: Callable[[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        export_bundle(checkpoint(section), None, tmp_path / "b.bundle", ExportOptions())
    with pytest.raises(BundleError, match="bundle 'x': 'edge_sdk' of its generation settings"):
        GenerationConfig.of_section({"edge_sdk": section}, "bundle 'x'")
