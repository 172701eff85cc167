"""The stages as commands, one after the other, at the tiny size: from fresh weights to a bundle that answers.

Questions are seeded noises and replies' codes seeded random numbers (tests/nano/sounds.py): to the language half codes
are ids, whatever they sound like. Everything else is the recipe's own.
"""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

import edge_sdk
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from samples.nano import __main__ as commands
from samples.nano import training
from samples.nano.model.checkpoint import load
from samples.nano.settings import TINY
from samples.nano.stages import evaluate, hear
from samples.nano.stages import stage as stages
from samples.nano.texts.dialogues import Dialogue, dialogues
from samples.nano.texts.store import write_dialogues
from samples.nano.voices.packages import WHISPER_TINY_EN, is_installed
from tests.nano.sounds import RATE_HZ, ListedSounds, SeededSounds

SOUNDS = SeededSounds(TINY.codec.codes, codes=20)


def exchanges(count: int) -> list[Dialogue]:
    """Short ones, each with another answer: a question and its reply, no tools."""
    found: dict[str, Dialogue] = {}
    for dialogue in dialogues(1, 1000, "train"):
        if not dialogue.tools and dialogue.system is None and len(dialogue.turns) == 2:
            found.setdefault(dialogue.turns[1].text, dialogue)
    return sorted(found.values(), key=lambda d: sum(len(t.text) for t in d.turns))[:count]


def command(work: Path, *given: str) -> None:
    assert commands.main([given[0], "--preset", "tiny", "--work", str(work), *given[1:]]) == 0


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setattr(stages, "sounds_of", lambda options: SOUNDS)
    (tmp_path / "tokenizer").mkdir()
    write_text_tokenizer(tmp_path / "tokenizer", TINY.language_spec())
    (tmp_path / "texts").mkdir()
    for name in ("train", "plain_train", "held_out", "plain_held_out"):
        write_dialogues(tmp_path / "texts" / f"{name}.jsonl", exchanges(2))
    (tmp_path / "texts" / "stories.txt").write_text("The sun is up. It is warm.\n")
    return tmp_path


def log(work: Path, stage: str) -> list[dict[str, Any]]:
    lines = (work / f"{stage}.training" / training.LOG).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_from_nothing_to_answers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two questions learned by heart: each is answered with its own words and codes, so the model listens."""
    command(work, "start")
    command(work, "text", "--steps", "50", "--batch", "2", "--learning-rate", "5e-3")
    command(work, "prealign", "--steps", "40", "--batch", "2", "--learning-rate", "1e-2")
    command(work, "cocktail1", "--steps", "90", "--batch", "2", "--learning-rate", "5e-3")
    command(work, "merge")
    command(work, "cocktail2", "--steps", "40", "--batch", "2", "--learning-rate", "2e-3")
    command(work, "dpo", "--steps", "4", "--batch", "2")
    for stage in ("text", "prealign", "cocktail1", "cocktail2"):
        losses = [line["loss"] for line in log(work, stage)]
        assert losses[-1] < losses[0], stage
    bundle = export_bundle(work / "dpo", None, work / "bundle", ExportOptions())
    greedy = edge_sdk.GenerationConfig(do_sample=False, repetition_penalty=1.0, max_new_tokens=60)
    with edge_sdk.Chat(bundle, generation=greedy) as chat:
        for dialogue in exchanges(2):
            chat.reset()
            reply = chat.send(audio=SOUNDS.question(dialogue.turns[0].text, 0), sample_rate=RATE_HZ)
            assert reply.text == dialogue.turns[1].text
            codes = SOUNDS.reply(reply.text).tolist()
            assert list(reply.speech_ids[: len(codes)]) == codes
    capsys.readouterr()
    command(work, "evaluate", "--no-sound", "--count", "2", "--json")
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["text", "prealign", "cocktail1", "merged", "cocktail2", "dpo"]
    assert table["text"]["text"] == 1.0
    assert table["text"] == table["prealign"]  # its backbone did not move
    assert evaluate.readable(table).count("\n") == len(table)


def test_a_stage_goes_on_where_it_was(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and called again, it ends with the same bytes; with other weights or options it is refused."""
    command(work, "start")
    given = ["--steps", "8", "--batch", "2", "--source", str(work / "start")]
    command(work, "cocktail1", *given, "-o", str(work / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", partial(training.train, stop_at=3))
        command(work, "cocktail1", *given)
    assert not (work / "cocktail1").exists()
    command(work, "cocktail1", *given)
    whole, again = (work / name / "model.safetensors" for name in ("whole", "cocktail1"))
    assert whole.read_bytes() == again.read_bytes() != (work / "start" / "model.safetensors").read_bytes()
    for option, value in (("--source", str(work / "whole")), ("--batch", "3"), ("--seed", "2")):
        other = [*given, option, value, "-o", str(work / "cocktail1b")]
        (work / "cocktail1.training").rename(work / "cocktail1b.training")
        refused(work, f"was begun with another {option[2:]}", "cocktail1", *other)
        (work / "cocktail1b.training").rename(work / "cocktail1.training")


def test_every_drill_and_muon(work: Path) -> None:
    """A few steps of each kind; shares that are all of the steps leave nothing else."""
    command(work, "start")
    few = ["--steps", "6", "--batch", "2", "--muon"]
    command(work, "text", *few, "--figures-share", "0.4", "--copy-share", "0.3", "--replies-weight", "1")
    command(work, "prealign", *few, "--hear-share", "0.5", "--read-share", "0.5", "--head-context", "2")
    drills = ["--copy-share", "0.3", "--figures-share", "0.3", "--head-context", "2", "--head-sampled", "3"]
    two = ["--hear-share", "0.3", "--hear-two-share", "0.5"]
    refused(work, "run python -m samples.nano hear", "cocktail1", *few, *two)
    heard = ["--hear-share", "0.3", "--hear-dropout", "0.1"]
    command(work, "cocktail1", *few, *drills, *heard, "--backbone-rate", "0.5", "--slip-share", "0.2")
    last = ["cocktail2", "--source", str(work / "cocktail1"), *few, "--encoder", "last", "--hear-share", "0.5"]
    heard_by(work / "cocktail1", work / "heard", last=True)
    refused(work, "run python -m samples.nano hear --before-last again", *last)
    heard_by(work / "cocktail1", work / "heard", last=False)
    command(work, *last)
    before, after = (load(work / name).model.state_dict() for name in ("cocktail1", "cocktail2"))
    parts = {name for name in before if not torch.equal(before[name], after[name])}
    final = f"continuous_audio_tower.layers.{TINY.encoder.layers - 1}."
    assert any(name.startswith(final) for name in parts)
    assert not any(
        name.startswith(("continuous_audio_tower.conv", "continuous_audio_tower.layers.0.")) for name in parts
    )
    names = ("start", "text", "prealign", "cocktail1")
    weights = [(work / name / "model.safetensors").read_bytes() for name in names]
    assert len(set(weights)) == len(names), "each stage moves something"
    backbones = [backbone_of(work / name) for name in names]
    assert backbones[1] == backbones[2], "pre-alignment leaves the backbone as it is"
    assert len(set(backbones)) == 3


def heard_by(checkpoint: Path, folder: Path, *, last: bool) -> None:
    """What the command `hear` does, of sounds that were not rendered."""
    loaded = load(checkpoint)
    found = hear.encode(loaded, ListedSounds(9), torch.device("cpu"), last=last)  # type: ignore[arg-type]
    hear.write(folder, hear.digest(loaded.model, last=last), found)


def backbone_of(checkpoint: Path) -> bytes:
    """Bytes of its weights."""
    model = load(checkpoint).model.language_model
    return b"".join(t.numpy().tobytes() for t in model.state_dict().values())


def refused(work: Path, says: str, *given: str) -> None:
    """One line, exit status 1."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert commands.main([given[0], "--preset", "tiny", "--work", str(work), *given[1:]]) == 1
    text = said.getvalue()
    assert says in text
    assert text.count("\n") == 1


def test_mistakes_are_one_line(work: Path) -> None:
    refused(work, "run python -m samples.nano start first", "text")
    refused(work, "lacks tokenizer.json", "start", "--tokenizer", str(work))
    missing = "does not fit config.json" if is_installed(WHISPER_TINY_EN) else f"{WHISPER_TINY_EN[0]} is missing"
    refused(work, missing, "start", "--encoder", "whisper")
    shares = "shares of drills are no more than 1 together"
    refused(work, shares, "text", "--copy-share", "0.6", "--figures-share", "0.6")
    shares = "shares of drills and answers are no more than 1 together"
    refused(work, shares, "cocktail1", "--hear-share", "0.6", "--figures-share", "0.6")
    refused(work, shares, "cocktail1", "--hear-share", "0.6", "--answer-share", "0.6")
    refused(work, "--answer-share, which is 0", "cocktail1", "--answer-texts", str(work))
    refused(work, "beside --head-context alone", "prealign", "--head-sampled", "1")
    refused(work, "is a share of --hear-share", "prealign", "--hear-two-share", "0.1")
    refused(work, "leaves nothing to hear", "cocktail1", "--hear-dropout", "1")
    refused(work, "the backbone does not move", "prealign", "--backbone-rate", "0.5")
    refused(work, "the encoder does not move", "prealign", "--encoder", "last")
    command(work, "start")
    refused(work, "exists and is not an empty folder", "start")
    refused(work, "has none of the checkpoints", "evaluate")
    refused(work, "there is no", "text", "--texts", str(work / "nowhere"))
    (work / "text").mkdir()
    refused(work, "is there already", "text")
    refused(
        work,
        "of the shares of pairs one must be above 0",
        "dpo",
        "--source",
        str(work / "start"),
        *["--noise", "0", "--calls", "0"],
        "--instructions",
        "0",
    )
    refused(
        work, "none of the texts is of a kind", "dpo", "--source", str(work / "start"), "--noise", "0", "--calls", "0"
    )
    refused(work, "run python -m samples.nano prealign first", "merge")
