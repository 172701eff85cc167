"""Rendered questions as the stages find them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("torch", reason="the recipe needs PyTorch")

from edge_sdk.errors import Error
from samples.nano.stages.sources import RenderedSounds
from samples.nano.voices.hibari_voice import Spoken
from samples.nano.voices.jobs import Job
from samples.nano.voices.shards import write_shard

RATE_HZ = 16000


def rendered(folder: Path, jobs: list[Job]) -> None:
    """Shards as `render` writes them, with a ramp of its own for each job."""
    folder.mkdir()
    spoken = [Spoken((np.arange(800 + n) / 32768).astype(np.float32), RATE_HZ) for n in range(len(jobs))]
    write_shard(folder, 0, "asked", jobs, spoken)
    (folder / "manifest.json").write_text(json.dumps({"shards": 1}))


def test_every_take_of_a_split(tmp_path: Path) -> None:
    jobs = [Job("one", "train", take=0), Job("one", "held_out"), Job("two", "train"), Job("one", "train", take=1)]
    rendered(tmp_path / "users", jobs)
    sounds = RenderedSounds(tmp_path / "users", "train", {"Yes.": np.arange(3)})
    assert sounds.takes == 2
    lengths = [len(pcm) for take in range(4) if (pcm := sounds.question("one", take)) is not None]
    assert lengths == [800, 803, 800, 803]
    two = sounds.question("two", 1)
    assert two is not None
    assert two.dtype == np.float32
    assert np.array_equal(two, np.arange(802, dtype=np.float32) / 32768)
    assert sounds.question("three", 0) is None
    assert sounds.reply("No.") is None
    assert sounds.reply("Yes.") is sounds.codes["Yes."]


def test_nothing_is_decoded_until_it_is_asked_for(tmp_path: Path) -> None:
    rendered(tmp_path / "users", [Job("one", "train", take=0), Job("one", "train", take=1)])
    sounds = RenderedSounds(tmp_path / "users", "train", {})
    (tmp_path / "users" / "shard-00000.flac").unlink()
    assert [len(clip) for clip in sounds.clips["one"]] == [800, 801]
    with pytest.raises(soundfile.LibsndfileError, match=r"shard-00000\.flac"):
        sounds.question("one", 0)


def test_what_is_damaged_is_found_before_it_is_asked_for(tmp_path: Path) -> None:
    rendered(tmp_path / "users", [Job("one", "train")])
    (tmp_path / "users" / "shard-00000.flac").write_bytes(b"fLaC")
    with pytest.raises(Error, match=r"shard-00000\.flac' is damaged"):
        RenderedSounds(tmp_path / "users", "train", {})


def test_when_words_begin(tmp_path: Path) -> None:
    (tmp_path / "replies").mkdir()
    spoken = [Spoken(np.zeros(960, np.float32), 24000, np.zeros(3, np.float32), (0.0, 0.25))]
    write_shard(tmp_path / "replies", 0, "asked", [Job("It is.", "train")], spoken)
    (tmp_path / "replies" / "manifest.json").write_text(json.dumps({"shards": 1}))
    rendered(tmp_path / "users", [Job("one", "train")])
    sounds = RenderedSounds(tmp_path / "users", "train", {}, tmp_path / "replies")
    assert sounds.starts_s("It is.") == (0.0, 0.25)
    assert sounds.starts_s("It is not.") == ()


def test_a_split_that_was_not_rendered(tmp_path: Path) -> None:
    rendered(tmp_path / "users", [Job("one", "train")])
    with pytest.raises(Error, match="has no question of the split held_out"):
        RenderedSounds(tmp_path / "users", "held_out", {})
    with pytest.raises(Error, match=r"run python -m samples\.nano render"):
        RenderedSounds(tmp_path / "nothing", "train", {})
