"""What a checkpoint says of how replies are made, from its generation_config.json to Chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError, CheckpointError
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.generation import GenerationConfig
from tests import speech_goldens as goldens

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
