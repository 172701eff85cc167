"""Held-out questions as `score` has them said are the clips that `render` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the recipe needs PyTorch")

from samples.nano.ship.questions import HeldOutUsers, draw_items, engines_of, level_of
from samples.nano.texts.dialogues import dialogues
from samples.nano.texts.store import write_dialogues
from samples.nano.voices import render
from samples.nano.voices.jobs import user_jobs
from samples.nano.voices.packages import HIBARI, is_installed
from samples.nano.voices.shards import read_clips


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    write_dialogues(tmp_path / "texts" / "held_out.jsonl", dialogues(1, 3, "held_out"))
    return tmp_path / "texts"


@pytest.mark.skipif(not is_installed(HIBARI), reason=f"the package {HIBARI[0]} is not installed")
def test_they_sound_as_render_has_them(texts: Path, tmp_path: Path) -> None:
    jobs = user_jobs(texts, 1, (), splits=["held_out"], snr_db=5.0)[:2]
    render.render(tmp_path / "users", jobs)
    sounds = HeldOutUsers(texts, "5 dB", ())
    for clip in read_clips(tmp_path / "users"):
        said = sounds.question(clip.text, 0)
        assert said is not None
        assert np.abs(said - clip.spoken.pcm).max() <= 1 / 32768
    assert sounds.question("What was never asked?", 0) is None
    assert engines_of(tmp_path / "nowhere") is not None


def test_which_are_asked(texts: Path) -> None:
    path = texts / "held_out.jsonl"
    everything = draw_items(path, 1000, 1)
    assert draw_items(path, 2, 1) == draw_items(path, 2, 1)
    assert {(i.dialogue.id, i.number) for i in draw_items(path, 2, 2)} <= {
        (i.dialogue.id, i.number) for i in everything
    }
    assert all(item.turn.role == "assistant" for item in everything)
    assert (level_of("natural"), level_of("10 dB")) == (None, 10.0)
