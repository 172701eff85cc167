"""The demo preset, exported: small enough for the tests to keep, and it holds a conversation that comes to an end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.chat import Chat
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import PRESETS, write_language_checkpoint, write_vocoder_checkpoint
from edge_sdk.generation import GenerationConfig

AUDIO = Path(__file__).parents[1] / "audio"
DEMO = PRESETS["demo"]
SEED = 2  # replies of some ten seconds; of other seeds some are curter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert DEMO.language
    assert DEMO.vocoder
    write_language_checkpoint(folder / "language", DEMO.language, SEED)
    write_vocoder_checkpoint(folder / "vocoder", DEMO.vocoder, SEED)
    voice = folder / "vocoder" / "voices" / f"{DEMO.vocoder.voices[0]}.npy"
    return export_bundle(
        folder / "language",
        folder / "vocoder",
        folder / "demo.bundle",
        ExportOptions(noise_frames=1500),
        voices={DEMO.vocoder.voices[0]: voice},
    )


def test_the_bundle_is_small_enough_to_keep(bundle: Path) -> None:
    assert sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()) < 4_000_000


def test_replies_are_of_a_useful_length_and_readable(bundle: Path) -> None:
    replies: list[Any] = []
    for seed in range(4):
        with Chat(bundle, generation=GenerationConfig(seed=seed, max_new_tokens=200)) as chat:
            replies.append(chat.send(audio=AUDIO / "syn1p3.wav"))
    assert [r.finish_reason for r in replies].count("stop") >= 3
    steps = np.array([len(r.text_ids) for r in replies])
    assert 10 < steps.mean() < 150
    for reply in replies:
        assert reply.text.isprintable()
        assert len(set(reply.speech_ids)) > len(reply.speech_ids) / 8
