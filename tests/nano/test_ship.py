"""From a checkpoint to the package's default: bundles, score, card, ship, at the tiny size with untrained weights."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")
pytest.importorskip("soxr", reason="the recipe needs soxr")

import edge_sdk
from edge_sdk.errors import Error
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from edge_sdk.generation import GenerationConfig
from samples.nano import __main__ as commands
from samples.nano.codec.checkpoint import write_vocoder
from samples.nano.codec.flow import Flow
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.waveform import Waveform
from samples.nano.model.fresh import write_fresh
from samples.nano.model.replies import GENERATION, REPLIES, settle
from samples.nano.settings import TINY
from samples.nano.ship import bundles, card, gates, ship
from samples.nano.ship.questions import Recordings
from samples.nano.ship.row import Asked, summary
from samples.nano.ship.score import EXPECTED
from samples.nano.ship.speed import measure
from samples.nano.texts import checker
from samples.nano.texts.dialogues import dialogues
from samples.nano.texts.store import read_dialogues, write_dialogues

AUDIO = Path(__file__).parents[1] / "audio"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with an untrained checkpoint, an untrained vocoder and a few dialogues."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    work = tmp_path_factory.mktemp("work")
    (work / "tokenizer").mkdir()
    write_text_tokenizer(work / "tokenizer", TINY.language_spec())
    write_fresh(work / "start", TINY, work / "tokenizer", whisper=None, seed=1)
    sizes = vocoder_sizes(TINY.vocoder_spec())
    write_vocoder(work / "vocoder", TINY, Flow(sizes), Waveform(sizes))
    (work / "texts").mkdir()
    write_dialogues(work / "texts" / "held_out.jsonl", dialogues(1, 4, "held_out"))
    return work


@pytest.fixture
def work(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "work"))


def command(work: Path, *given: str) -> int:
    return commands.main([given[0], "--preset", "tiny", "--work", str(work), *given[1:]])


def test_a_bundle_is_kept_while_it_is_of_the_same_weights(work: Path) -> None:
    checkpoint = bundles.newest_checkpoint(work)
    assert checkpoint.name == "start"
    (checkpoint / GENERATION).write_text("{}")  # as of a checkpoint that was begun before it said how it replies
    first = bundles.make(work, "int8", checkpoint)
    assert (checkpoint / GENERATION).read_text() == "{}"
    with edge_sdk.Chat(first.path) as chat:
        assert chat.generation == GenerationConfig(**REPLIES)
        assert chat.bundle.manifest.notes == (bundles.NOTE,)
    assert first.record["bytes"] == first.path.stat().st_size
    assert first.record["parameters"]["waveform"] > 0
    written = first.path.stat().st_mtime_ns
    assert bundles.make(work, "int8", checkpoint).path.stat().st_mtime_ns == written
    with first.path.open("ab") as file:
        file.write(b"x")
    assert bundles.make(work, "int8", checkpoint).sha256 == first.sha256
    shutil.rmtree(work / "vocoder")
    with pytest.raises(Error, match="there is no vocoder"):
        bundles.make(work, "fp32", checkpoint)


@pytest.mark.parametrize("kind", ["int8", "mixed", "int4"])
def test_the_kinds_of_30_mb_keep_no_convolution_wide(work: Path, kind: str) -> None:
    with edge_sdk.Bundle.open(bundles.make(work, kind, work / "start").path) as bundle:
        for key, graph in bundle.manifest.graphs.items():
            model = onnx.load_from_string(bytes(bundle.read(graph.file)))
            assert not [t.name for t in model.graph.initializer if _is_wide_kernel(t)], key
        assert bundle.manifest.graphs["f0"].precision == "fp16"
        assert bundle.manifest.graphs["waveform"].precision == "int8"


def _is_wide_kernel(tensor: Any) -> bool:
    """A convolution's weight of a checkpoint or a fold of one; f0's are matrices of float64."""
    wide = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    kernel = tensor.name.endswith((".weight", ".phases")) and len(tensor.dims) == 3
    return wide and (kernel or tensor.name.endswith(".matrix"))


def test_what_a_checkpoint_says_already_stays(work: Path) -> None:
    path = work / "start" / GENERATION
    assert json.loads(path.read_text())["edge_sdk"] == dict(REPLIES)
    path.write_text('{"edge_sdk": {}}')
    settle(work / "start")
    assert path.read_text() == '{"edge_sdk": {}}'


def test_scored_and_shipped(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Error, match="there is no score"):
        card.read_score(work)
    evaluated = {"text": {"text": 0.5, "nats": 2.5}, "merged": {"text": 0.25, "spoken": 0.125, "nats": 3.0}}
    (work / "evaluation.json").write_text(json.dumps(evaluated))
    expected = work / "expected.jsonl"
    expected.write_text("\n".join(EXPECTED.read_text().splitlines()[:2]) + "\n")
    ask = ["score", "--bundle", "mixed", "--condition", "typed", "--count", "3", "--heard", "0", "--no-speed"]
    ask += ["--threads", "1", "--recordings", str(AUDIO / "speech"), "--expected", str(expected)]
    assert command(work, *ask) == 0
    assert "task success, held-out speech" in capsys.readouterr().out
    score = card.read_score(work)
    assert [row["success"] for row in score["rows"]] == [[0, 3]]
    assert score["recordings"][0]["success"] == [0, 2]  # one of the two recordings is there, and asked twice
    answers = [json.loads(line) for line in (work / "score" / "answers.jsonl").read_text().splitlines()]
    assert [a["condition"] for a in answers] == ["typed"] * 3 + ["recordings"] * 2
    kept = {p.name: p.stat().st_mtime_ns for p in (work / "score" / "rows").iterdir()}
    assert command(work, *ask) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (work / "score" / "rows").iterdir()} == kept

    target = work / "package" / "default.bundle"
    target.parent.mkdir()
    capsys.readouterr()
    assert command(work, "ship", "--bundle", "mixed", "--target", str(target)) == 1
    assert "'mixed' stays where it is: task success, held-out speech was not measured" in capsys.readouterr().err
    assert command(work, "ship", "--bundle", "int4", "--target", str(target), "--force") == 1
    assert "the bundle 'int4' was not scored; there is mixed" in capsys.readouterr().err
    assert not list(target.parent.iterdir())
    assert command(work, "ship", "--bundle", "mixed", "--target", str(target), "--force") == 0
    assert "shipped though task success" in capsys.readouterr().out
    assert sorted(p.name for p in target.parent.iterdir()) == [card.NAME, "default.bundle"]
    text = (target.parent / card.NAME).read_text()
    assert score["bundles"]["mixed"]["sha256"] in text
    assert "| merged | 25.0 % | 3.000 | 12.5 % |" in text
    assert "$" not in text
    assert command(work, "card", "--bundle", "mixed", "-o", str(work / "card.md")) == 0
    assert (work / "card.md").read_text() == text
    with target.open("rb") as shipped:
        assert shipped.read() == (work / "bundles" / "mixed.bundle").read_bytes()
    (work / "bundles" / "mixed.bundle").write_bytes(b"another")
    with pytest.raises(Error, match="is not the bundle that was scored"):
        ship.check_is_scored(work / "bundles" / "mixed.bundle", score["bundles"]["mixed"])


def test_two_processes_ask(work: Path) -> None:
    ask = ["score", "--bundle", "int8", "--condition", "typed", "--count", "2", "--heard", "0", "--no-speed"]
    ask += ["--recordings", str(AUDIO / "held_out")]
    assert command(work, *ask, "--threads", "1") == 0
    alone = card.read_score(work)
    shutil.rmtree(work / "score")
    assert command(work, *ask, "--jobs", "2") == 0
    together = card.read_score(work)
    assert (together["rows"], together["recordings"]) == (alone["rows"], alone["recordings"])


def test_times_of_spoken_questions(work: Path) -> None:
    made = bundles.make(work, "fp32", work / "start")
    recordings = Recordings(AUDIO / "speech", list(read_dialogues(EXPECTED))[:2])
    assert recordings.missing == ["tts_joe_cmd_timer5"]
    found = measure(made.path, recordings.items[:1] * 2, recordings, threads=1, steps=10)
    assert found["replies"] == 1
    assert found["first_sound_ms"]["p50"] > 0
    assert found["rtf_by_stage"]["flow"] < found["rtf"]
    assert {s["stage"] for s in found["stages"]} >= {"mel", "flow chunk"}


def row(**changes: Any) -> dict[str, Any]:
    errors = {
        "streaming": {"errors": 4, "words": 100, "replies": 9},
        "whole": {"errors": 3, "words": 100, "replies": 9},
    }
    return {"bundle": "int8", "condition": "natural", "success": [91, 100], "word errors": errors, **changes}


SPEED = {"rtf": 0.1, "first_sound_ms": {"p50": 250.0}}


@pytest.mark.parametrize(
    ("rows", "size", "missed"),
    [
        ([row()], 30_000_000, []),
        ([row(success=[89, 100])], 30_000_000, ["task success, held-out speech is 0.89, at least 0.9"]),
        ([row()], 30_000_001, ["bytes is 3e+07, at most 3e+07"]),
        ([row(condition="20 dB")], 1, ["task success, held-out speech was not measured"]),
        ([row(bundle="int4")], 1, ["task success, held-out speech was not measured"]),
        (
            [row(**{"word errors": {"streaming": {"errors": 11, "words": 100, "replies": 9}}})],
            1,
            [
                "word errors of replies, streaming vocoder is 0.11, at most 0.1",
                "word errors of replies, whole vocoder was not measured",
            ],
        ),
    ],
)
def test_gates(rows: list[dict[str, Any]], size: int, missed: list[str]) -> None:
    found = gates.gates("int8", {"bytes": size}, rows, {})
    assert not any(gate.met for gate in found if gate.name == "real-time factor"), "it was not measured"
    told = ship.missed_gates({"gates": {"int8": [gate.to_json() for gate in found]}}, "int8")
    assert told[: len(missed)] == missed
    assert bool(told) == bool(missed)
    assert all(g.met for g in gates.gates("int8", {"bytes": 1}, [row()], SPEED))


def test_counts_of_a_row(work: Path) -> None:
    made = bundles.Made("int8", work / "none", {"sha256": ""})
    base = {"success": True, "task": "timers.set", "kind": "call", "group": "timers", "finish_reason": "stop"}
    heard = {"streaming": {"text": "", "errors": 1, "words": 4}}
    lines = [
        {**base, "questions": 1},
        {**base, "questions": 2, "success": False, "task": "timers.left", "heard": heard},
        {**base, "questions": 2, "task": "home.light", "kind": "answer", "heard": heard, "finish_reason": "length"},
    ]
    found = summary(Asked(made, "natural", [], 9, False), lines)
    assert (found["success"], found["first question"], found["later questions"]) == ([2, 3], [1, 1], [1, 2])
    assert found["tasks"] == {"home": [1, 1], "timers": [1, 2]}
    assert found["kinds"] == {"answer": [1, 1], "call": [1, 2]}
    assert found["ended"] == {"length": 1, "stop": 2}
    assert found["word errors"] == {"streaming": {"errors": 2, "words": 8, "replies": 2}}


def test_what_is_right_for_the_recordings() -> None:
    """Each expectation passes its own checker, and the recordings are in the tests but for one."""
    found = list(read_dialogues(EXPECTED))
    for dialogue in found:
        for n, turn in enumerate(dialogue.turns):
            if turn.role == "assistant":
                assert checker.score(dialogue, n, turn.text, turn.tool_calls).success, dialogue.id
    missing = [Recordings(AUDIO / place, found).missing for place in ("speech", "held_out")]
    assert set(missing[0]) & set(missing[1]) == {"tts_hibari_cmd_lights"}


def test_a_recording_is_heard_at_the_models_rate(tmp_path: Path) -> None:
    import soundfile

    dialogue = next(read_dialogues(EXPECTED))
    sound = np.sin(np.arange(48000) / 20).astype(np.float32)
    soundfile.write(tmp_path / f"{dialogue.id}.wav", np.stack([sound, sound], axis=1), 48000)
    recordings = Recordings(tmp_path, [dialogue])
    heard = recordings.question(dialogue.turns[0].text, 0)
    assert heard is not None
    assert heard.shape == (16000,)
    assert recordings.question("another", 0) is None
    with pytest.raises(Error, match="has none of the recordings"):
        Recordings(tmp_path / "nothing", [dialogue])
    (tmp_path / f"{dialogue.id}.wav").write_bytes(b"RIFF")
    with pytest.raises(Error, match="is no sound file that can be read"):
        recordings.question(dialogue.turns[0].text, 0)
