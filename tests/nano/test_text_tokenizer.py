"""The tokenizer that is trained on the texts, and text on the 5 Hz grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.export.random_checkpoint.specs import ADDED_TOKENS
from samples.nano.__main__ import main
from samples.nano.settings import PRESETS
from samples.nano.texts.dialogues import dialogues
from samples.nano.texts.grid import align, missing_groups, word_steps, words_of
from samples.nano.texts.train_tokenizer import read_tokenizer
from samples.nano.voices.grid_report import STEP_S, grid_report
from samples.nano.voices.hibari_voice import Spoken
from samples.nano.voices.shards import Clip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    assert main(["texts", "--work", str(folder), "--count", "300", "--json"]) == 0
    assert main(["tokenizer", "--work", str(folder), "--preset", "tiny", "--json"]) == 0
    return folder


def test_it_writes_and_reads_every_text(work: Path) -> None:
    tokenizer = read_tokenizer(work / "tokenizer")
    for dialogue in dialogues(9, 100, "held_out"):
        for turn in dialogue.turns:
            for text in (turn.text, *(call.raw for call in turn.tool_calls)):
                assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    assert tokenizer.decode(tokenizer.encode_plain("Grüße, 早上好 🙂")) == "Grüße, 早上好 🙂"


def test_a_folder_that_holds_something_else_is_not_replaced(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tokenizer", "--texts", str(work / "texts"), "--preset", "tiny", "--out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main([*command, str(tmp_path / "mine")]) == 1
    assert "also holds what is no tokenizer's, so it is not replaced: thesis.txt" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert main([*command, "."]) == 1
    assert "cannot be a tokenizer's folder" in capsys.readouterr().err


def test_every_id_is_one_that_was_learned(work: Path) -> None:
    """The spec that is written has as many text tokens as there are, and the added ones follow at once."""
    settings = PRESETS["tiny"]
    vocab = json.loads((work / "tokenizer" / "vocab.json").read_text())
    tokenizer = read_tokenizer(work / "tokenizer")
    assert not [token for token in vocab if token.startswith("[unused")]
    assert len(vocab) <= settings.text_tokens
    spec = settings.language_spec(len(vocab))
    assert tokenizer.added_ids == {content: spec.token_id(content) for content, _ in ADDED_TOKENS}
    assert tokenizer.encode("<|im_start|><|sil|>") == [spec.token_id("<|im_start|>"), spec.token_id("<|sil|>")]


def test_the_same_texts_give_the_same_tokenizer(work: Path, tmp_path: Path) -> None:
    again = ["tokenizer", "--texts", str(work / "texts"), "--out", str(tmp_path / "t"), "--preset", "tiny", "--json"]
    assert main(again) == 0
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "speech_tokenizer/tokenizer_config.json"):
        assert (tmp_path / "t" / name).read_bytes() == (work / "tokenizer" / name).read_bytes()


def test_text_in_front_then_silence() -> None:
    assert align([5, 6, 7], 5, 0) == [5, 6, 7, 0, 0]
    assert align([5, 6, 7], 3, 0) == [5, 6, 7]
    assert align([], 2, 0) == [0, 0]


def test_text_longer_than_its_speech_keeps_every_id() -> None:
    assert align([5, 6, 7], 2, 0) == [5, 6, 7]
    assert missing_groups([5, 6, 7], 2) == 1
    assert missing_groups([5, 6, 7], 4) == 0


def test_timed_text_waits_for_its_word_and_is_never_late() -> None:
    assert align([5, 6, 7], 6, 0, [0, 2, 3]) == [5, 0, 6, 7, 0, 0]
    assert align([5, 6, 7], 6, 0, [0, 0, 9]) == [5, 6, 0, 0, 0, 7]
    assert align([5, 6, 7], 4, 0, [9, 9, 9]) == [0, 5, 6, 7]
    with pytest.raises(ValueError, match="first steps"):
        align([5, 6], 4, 0, [0])


def test_pieces_know_their_words_and_words_their_steps() -> None:
    pieces = ["Turn", "ed", " on", ",", " it", " is", " off", "."]
    assert words_of(pieces) == [0, 0, 1, 1, 2, 3, 4, 4]
    assert word_steps(words_of(pieces), [0.0, 0.5, 1.0, 1.3, 2.0], lead_s=0.4) == [0, 0, 0, 0, 2, 4, 8, 8]


def test_the_report_counts_words_that_the_voice_begins_before_their_text(work: Path) -> None:
    """An id in step n is known from step n + 1 on: at 0.2 s a step the words' ids lie n * 0.2 s and more behind."""
    tokenizer = read_tokenizer(work / "tokenizer")
    text = "Turn it off."
    ids = tokenizer.encode_plain(text)
    last = {word: n for n, word in enumerate(words_of([tokenizer.decode([i]) for i in ids]))}
    known = [(last[word] + 1) * STEP_S for word in range(3)]

    def clip(starts: list[float], seconds: float) -> Clip:
        return Clip(text, Spoken(np.zeros(round(24000 * seconds), np.float32), 24000, word_starts_s=tuple(starts)), {})

    in_time, late = clip([s + 0.1 for s in known], 4.0), clip([known[0] + 0.1, known[1] - 0.05, known[2] + 0.1], 0.3)
    report = grid_report([in_time, late], tokenizer)
    assert report["replies"] == 2
    assert report["words"] == 6
    assert report["late_words"] == 1
    assert report["least_lead_s"] == -0.05
    assert report["text_longer_than_speech"] == 1
    assert report["ids_a_second"] == round(2 * len(ids) / 4.3, 2)
    assert report["most_ids_a_step"] == len(ids) / 2
