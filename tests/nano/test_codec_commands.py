"""The codec's commands in order, at the tiny size: from replies to a bundle that says what was encoded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("torch", reason="training needs PyTorch: pip install -r samples/nano/requirements.txt")
pytest.importorskip("onnx")
pytest.importorskip("hibari", reason="the reply voice needs hibari-tts: pip install -r samples/nano/requirements.txt")

from edge_sdk.bundle import Bundle
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.vocoder import Vocoder
from samples.nano.__main__ import main
from samples.nano.codec.encode import load_tokenizer, reply_codes
from samples.nano.codec.folders import CODEC, FLOW
from samples.nano.codec.write_vocoder import load_flow, load_waveform
from samples.nano.settings import TINY
from samples.nano.ship.bundles import read_record
from samples.nano.training_state import STATE
from samples.nano.voices.jobs import Job
from samples.nano.voices.render import render

Command = Callable[..., str]
REPLIES = ("It is five.", "The lights are on.", "Hello.")


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a work folder of its own; gives what it printed, an error's line included."""

    def call(name: str, *options: str, status: int = 0) -> str:
        assert main([name, "--work", str(tmp_path / "work"), "--preset", "tiny", *options]) == status
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return found.out + found.err

    return call


def rendered(work: Path) -> None:
    """Three replies in the reply voice, the last of them held out."""
    jobs = [Job(text, split) for text, split in zip(REPLIES, ("train", "train", "held_out"), strict=True)]
    render(work / "speech" / "replies", jobs)


def test_from_replies_to_sound(command: Command, tmp_path: Path) -> None:
    work = tmp_path / "work"
    rendered(work)
    short = ("--rows", "2", "--steps", "3")
    assert "step 3 of 3" in (out := command("codec", *short))
    assert "held out: loss" in out
    assert "different ones used" in command("encode")
    codes = reply_codes(work, TINY)
    assert tuple(codes) == REPLIES
    assert "step 3 of 3" in command("flow", *short)
    assert "step 3 of 3" in command("waveform", *short)
    untuned = load_waveform(work, TINY).state_dict()
    assert "tuned: step 3 of 3" in command("tune", "--replies", "2", *short)
    tuned = load_waveform(work, TINY).state_dict()
    assert any((untuned[name] != tuned[name]).any() for name in untuned)
    assert all((untuned[name] == v).all() for name, v in load_waveform(work, TINY, tuned=False).state_dict().items())
    out = command("resynthesize", "--count", "1", "--no-asr")
    made = (
        "sound",
        *(f"{mel}{by}" for mel in ("mel", "decoder", "flow_streaming", "flow_whole") for by in ("_gl", "")),
    )
    assert f"1 replies each by {', '.join(made)} in" in out
    for name in made:
        pcm, rate = soundfile.read(work / "resynthesized" / f"000_{name}.wav")
        assert rate == TINY.sound.output_rate_hz
        assert len(pcm) == len(codes["Hello."]) * TINY.sound.frames_per_token * TINY.sound.hop_samples
    assert "edge-sdk export" in command("vocoder")
    path = export_bundle(None, work / "vocoder", tmp_path / "bundle", ExportOptions(noise_frames=500))
    with Bundle.open(path) as bundle:
        vocoder = Vocoder(bundle, steps=4)
        pcm = vocoder.synthesize(codes[REPLIES[0]])
        assert len(pcm) == len(codes[REPLIES[0]]) * vocoder.samples_per_token
        assert np.isfinite(pcm).all()
        assert pcm.std() > 0


def test_training_goes_on(command: Command, tmp_path: Path) -> None:
    """Steps that were made are not made again; a run with another schedule is refused."""
    work = tmp_path / "work"
    rendered(work)
    short = ("--rows", "2", "--steps", "2")
    command("codec", *short)
    command("encode")
    assert read_record(work / CODEC / "run" / STATE)["step"] == 2
    before = load_tokenizer(work, TINY).state_dict()
    command("codec", *short)
    after = load_tokenizer(work, TINY).state_dict()
    assert all((before[name] == after[name]).all() for name in before)
    reply_codes(work, TINY)
    assert "begun with other settings" in command("codec", "--rows", "2", "--steps", "3", status=1)
    render(work / "speech" / "replies", [Job(text, "train") for text in (*REPLIES, "Good night.")])
    assert "1 rendered replies have no codes yet: run" in command("flow", *short, status=1)


def test_a_flow_keeps_to_the_codes_it_learned_from(command: Command, tmp_path: Path) -> None:
    work = tmp_path / "work"
    rendered(work)
    short = ("--rows", "2", "--steps", "2")
    for name in ("codec", "encode", "flow"):
        command(name, *(short if name != "encode" else ()))
    command("flow", *short)
    shutil.rmtree(work / CODEC)
    command("codec", "--rows", "3", "--steps", "2")
    command("encode")
    said = command("flow", *short, status=1)
    assert "was begun with another codec; remove it to train the flow anew" in said


def test_a_flow_goes_on_from_another(command: Command, tmp_path: Path) -> None:
    """At a rate of 0 it stays what it was begun with; at another it does not, and begins another run."""
    work, before = tmp_path / "work", tmp_path / "before"
    rendered(work)
    short = ("--rows", "2", "--steps", "2")
    for name in ("codec", "encode", "flow"):
        command(name, *(short if name != "encode" else ()))
    given = load_flow(work, TINY).state_dict()
    assert "is where the flow is written to" in command("flow", *short, "--source", str(work / FLOW), status=1)
    (work / FLOW).rename(before)
    going_on = (*short, "--source", str(before), "--muon")
    command("flow", *going_on, "--learning-rate", "0")
    assert all((value == given[name]).all() for name, value in load_flow(work, TINY).state_dict().items())
    assert "begun with other settings" in command("flow", *going_on, status=1)
    assert "was begun with another source" in command("flow", *short, status=1)
    shutil.rmtree(work / FLOW)
    command("flow", *going_on)
    moved = {name for name, value in load_flow(work, TINY).state_dict().items() if (value != given[name]).any()}
    assert "decoder.estimator.transformer_blocks.0.attn.to_q.weight" in moved
    assert "there is no trained flow" in command("flow", *short, "--source", str(tmp_path / "nowhere"), status=1)
    assert "give its folder as --source" in command("flow", *short, "--sampled", status=1)
    assert "was begun with another sampled" in command("flow", *going_on, "--sampled", status=1)
    shutil.rmtree(work / FLOW)
    assert "step 2 of 2" in command("flow", *going_on, "--sampled")


def test_what_is_missing_is_said(command: Command, tmp_path: Path) -> None:
    assert "run python -m samples.nano render" in command("resynthesize", status=1)
    assert "run python -m samples.nano render" in command("codec", status=1)
    assert "there is no trained codec" in command("encode", status=1)
    assert "there is no trained flow" in command("vocoder", status=1)
    assert "there is no trained waveform" in command("tune", status=1)
    rendered(tmp_path / "work")
    assert "there is no trained codec" in command("flow", status=1)
    for wrong in (("--steps", "0"), ("--device", "none")):
        assert "error: " in command("codec", *wrong, status=1)
    with pytest.raises(SystemExit, match="2"):
        command("codec", "--rows", "0")
    assert "1 replies each by sound, mel_gl in" in command("resynthesize", "--no-asr")
