"""Rendering: real clips in shards, a killed run that goes on, damage that is seen and mended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import Error
from samples.nano.__main__ import main
from samples.nano.voices.jobs import reply_jobs, user_jobs
from samples.nano.voices.packages import HIBARI, is_installed
from samples.nano.voices.render import render, speak
from samples.nano.voices.rooms import RATE
from samples.nano.voices.shards import read_clips, read_manifest

pytestmark = pytest.mark.skipif(not is_installed(HIBARI), reason="hibari-tts is not installed")
ROOT = Path(__file__).parents[2]
CLIPS = ["--set", "users", "--hibari-only", "--limit", "16", "--shard", "2"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    assert main(["texts", "--out", str(folder), "--count", "40", "--json"]) == 0
    return folder


def test_replies_are_stored_with_pitch_and_word_times(texts: Path, tmp_path: Path) -> None:
    jobs = reply_jobs(texts, ["held_out"])[:5]
    figures = render(tmp_path, jobs, clips=2)
    assert figures["rendered"] == 3
    clips = list(read_clips(tmp_path))
    assert [c.text for c in clips] == [job.text for job in jobs]
    for clip, job in zip(clips, jobs, strict=True):
        made = speak(job)
        assert np.abs(clip.spoken.pcm - made.pcm).max() <= 0.5 / 32768 + 1e-9
        assert np.array_equal(clip.spoken.f0, made.f0)
        assert clip.spoken.word_starts_s == made.word_starts_s
        assert clip.spoken.rate == made.rate
    assert figures["seconds"] == round(sum(len(c.spoken.pcm) for c in clips) / clips[0].spoken.rate, 1)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "samples.nano", "render", "--texts", str(texts), *CLIPS, "--out"]
    with subprocess.Popen([*command, str(killed)], cwd=ROOT, stdout=subprocess.PIPE) as running:
        while not list(killed.glob("users/*.json"))[1:] and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    made = {path.name: path.stat().st_mtime_ns for path in killed.glob("users/shard-*.json")}
    assert made
    assert main(["render", "--texts", str(texts), *CLIPS, "--out", str(killed), "--json"]) == 0
    assert main(["render", "--texts", str(texts), *CLIPS, "--out", str(whole), "--json"]) == 0
    names = sorted(path.name for path in (whole / "users").iterdir())
    assert len(names) == 3 * 8 + 1
    for name in names:
        assert (killed / "users" / name).read_bytes() == (whole / "users" / name).read_bytes(), name
    assert all((killed / "users" / name).stat().st_mtime_ns == at for name, at in made.items()), "rendered twice"
    assert all(clip.spoken.rate == RATE for clip in read_clips(killed / "users"))


def test_damage_is_seen_and_that_shard_alone_is_made_again(texts: Path, tmp_path: Path) -> None:
    jobs = user_jobs(texts, 1, ())[:6]
    assert render(tmp_path, jobs, clips=2)["rendered"] == 3
    flac = tmp_path / "shard-00001.flac"
    good = flac.read_bytes()
    flac.write_bytes(good[:-100] + bytes(100))
    with pytest.raises(Error, match=r"shard-00001\.flac' is damaged: run the same render command again"):
        list(read_clips(tmp_path))
    figures = render(tmp_path, jobs, clips=2)
    assert (figures["rendered"], figures["kept"]) == (1, 2)
    assert flac.read_bytes() == good
    (tmp_path / "shard-00002.json").unlink()
    with pytest.raises(Error, match="lacks shard 2 of 3"):
        list(read_clips(tmp_path))


def test_what_is_asked_differently_is_made_again(texts: Path, tmp_path: Path) -> None:
    render(tmp_path, user_jobs(texts, 1, (), snr_db=10.0)[:4], clips=2)
    assert render(tmp_path, user_jobs(texts, 1, (), snr_db=10.0)[:4], clips=2)["kept"] == 2
    assert render(tmp_path, user_jobs(texts, 1, (), snr_db=5.0)[:4], clips=2)["kept"] == 0
    assert render(tmp_path, user_jobs(texts, 2, (), snr_db=5.0)[:4], clips=2)["kept"] == 0


def test_a_process_or_two_make_the_same(texts: Path, tmp_path: Path) -> None:
    jobs = reply_jobs(texts)[:4]
    render(tmp_path / "one", jobs, clips=2)
    render(tmp_path / "two", jobs, clips=2, processes=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_more_texts_change_no_clip(texts: Path, tmp_path: Path) -> None:
    assert main(["texts", "--out", str(tmp_path), "--count", "50", "--json"]) == 0
    before, after = (user_jobs(folder, 1, ("flite",), splits=["train"]) for folder in (texts, tmp_path))
    assert before == after[: len(before)]
    assert {job.speaker.engine for job in before if job.speaker} == {"hibari", "flite"}


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--texts", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    for wrong in (["--jobs", "0"], ["--limit", "-1"], ["--snr", "nan"]):
        assert main(["render", "--texts", str(tmp_path), *wrong]) == 1
    with pytest.raises(Error, match="run python -m samples"):
        read_manifest(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
