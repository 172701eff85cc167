"""Sentences of pieces: new ones, of the grammar's words, to be rendered and drilled beside its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from samples.nano.__main__ import main
from samples.nano.texts.dialogues import dialogues
from samples.nano.texts.mixed import mixed
from samples.nano.texts.store import MIXED, read_dialogues, read_mixed
from samples.nano.voices.jobs import reply_jobs, user_jobs


def words(text: str) -> set[str]:
    return {word.strip(".,?!;:") for word in text.lower().split()}


def test_they_are_new_and_have_every_word() -> None:
    turns = [turn for dialogue in dialogues(3, 200, "train") for turn in dialogue.turns if turn.text]
    questions, replies = ([t.text for t in turns if t.role == role] for role in ("user", "assistant"))
    made = list(mixed(3, 1500, questions, replies, ()))
    assert made == list(mixed(3, 1500, questions, replies, ())) != list(mixed(4, 1500, questions, replies, ()))
    assert len({d.id for d in made}) == 1500
    for at, source in enumerate((questions, replies)):
        texts = [d.turns[at].text for d in made]
        assert len(set(texts)) == 1500
        assert not {t.lower().rstrip(".") for t in texts} & {s.lower().rstrip(".?!") for s in source}
        known = set().union(*map(words, source))
        found = set().union(*map(words, texts))
        assert found <= known and len(found) > 0.95 * len(known)


def test_names_stay_large_and_first_words_become_small() -> None:
    given = ["What is it in Oslo?", "What is that?", "Is it Oslo, or what?"]
    made = [word.strip(".") for d in mixed(1, 60, given, given, ()) for word in d.turns[0].text.split()[1:]]
    assert "Oslo" in made and "what" in made and not {"oslo", "What"} & set(made)


def test_held_out_sentences_do_not_come_out() -> None:
    """Three words have a few hundred sentences: all but those that are there or forbidden come, then it ends."""
    made = [d.turns[0].text for d in mixed(1, 10**6, ["On and off."], ["On and off."], ())]
    assert 100 < len(made) == len({text.lower() for text in made}) < 10**5
    again = [d.turns[0].text for d in mixed(1, 10**6, ["On and off."], ["On and off."], made[:1])]
    assert made[0] not in again and len(again) > 100
    assert not list(mixed(1, 9, [], ["On."], ()))


def test_they_are_rendered_in_both_kinds_of_voices(tmp_path: Path) -> None:
    given = ["texts", "--out", str(tmp_path), "--count", "30", "--plain", "0", "--json"]
    assert main(given) == 0 and not read_mixed(tmp_path)
    before = len(reply_jobs(tmp_path)), len(user_jobs(tmp_path, 1, ()))
    assert main([*given, "--mixed", "20"]) == 0
    made = list(read_dialogues(tmp_path / MIXED))
    jobs = reply_jobs(tmp_path), user_jobs(tmp_path, 1, ())
    assert (len(jobs[0]) - before[0], len(jobs[1]) - before[1]) == (20, 20)
    for at, found in ((1, jobs[0]), (0, jobs[1])):
        assert {d.turns[at].text for d in made} <= {job.text for job in found if job.split == "train"}
    assert main(given) == 0 and not (tmp_path / MIXED).exists()


def test_a_count_below_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texts", "--out", str(tmp_path), "--count", "3", "--mixed", "-1"]) == 1
    assert "--mixed at least 0" in capsys.readouterr().err
