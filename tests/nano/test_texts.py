"""The grammar: the same dialogues from a seed, nothing held out in training, answers that are right."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_sdk.errors import Error
from edge_sdk.tools import ToolCallParser
from samples.nano.__main__ import main
from samples.nano.texts import grammar, plain
from samples.nano.texts.dialogues import Dialogue, Split, dialogues
from samples.nano.texts.numbers import canonical, clock, ordinal, speak
from samples.nano.texts.scenes import SCENES
from samples.nano.texts.scenes.units import CONVERSIONS
from samples.nano.texts.statistics import Statistics, leaks
from samples.nano.texts.store import read_dialogues
from samples.nano.texts.tools import TOOLS

BOTH: tuple[Split, Split] = ("train", "held_out")


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Dialogue]]:
    return {split: list(dialogues(7, 2500, split)) for split in BOTH}


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[Dialogue]]:
    return {split: list(plain.tasks(7, 1500, split)) for split in BOTH}


def test_a_seed_tells_every_byte_and_a_count_changes_none(tmp_path: Path) -> None:
    first, again, more, other = (tmp_path / name for name in ("first", "again", "more", "other"))
    for folder, seed, total in ((first, 3, 40), (again, 3, 40), (more, 3, 60), (other, 4, 40)):
        assert main(["texts", "--out", str(folder), "--count", str(total), "--seed", str(seed), "--json"]) == 0
    names = sorted(path.name for path in first.iterdir())
    assert {"train.jsonl", "held_out.jsonl", "plain_train.jsonl", "stories.txt", "statistics.json"} <= set(names)
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    lines = (first / "train.jsonl").read_text().splitlines()
    assert lines == (more / "train.jsonl").read_text().splitlines()[: len(lines)]
    assert lines != (other / "train.jsonl").read_text().splitlines()


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    assert main(["texts", "--out", str(tmp_path), "--count", "120", "--seed", "5", "--json"]) == 0
    assert list(read_dialogues(tmp_path / "train.jsonl")) == list(dialogues(5, 120, "train"))
    assert list(read_dialogues(tmp_path / "plain_held_out.jsonl")) == list(plain.tasks(5, 12, "held_out"))


def count(made: Iterable[Dialogue]) -> Statistics:
    found = Statistics()
    for dialogue in made:
        found.add(dialogue)
    return found


@pytest.mark.parametrize("kind", ["sets", "tasks"])
def test_nothing_held_out_stands_in_training(kind: str, request: pytest.FixtureRequest) -> None:
    """Neither a phrasing nor a combination of values, and what is held out is there at all."""
    made = request.getfixturevalue(kind)
    train, held_out = count(made["train"]), count(made["held_out"])
    assert not leaks(train, held_out)
    assert len(held_out.phrasings) > 20
    assert len(held_out.values) > 200


def test_no_held_out_question_is_one_of_training_word_for_word(sets: dict[str, list[Dialogue]]) -> None:
    ours, theirs = ({t.text for d in sets[split] for t in d.turns if t.role == "user"} for split in BOTH)
    assert len(theirs) > 1000
    assert not ours & theirs


def test_a_leak_would_be_seen(sets: dict[str, list[Dialogue]]) -> None:
    train = count(sets["train"])
    assert leaks(train, train)


def test_no_text_of_a_held_out_phrasing_is_one_of_a_training_phrasing() -> None:
    """Two lines of a section may differ and yet make one text: "(a|b) x" and "a x", or "can you x" and "x"."""
    for name in grammar.sections():
        if name.startswith("ask ") and len(grammar.lines(name)) > 2:
            ours, theirs = (
                {t for line in grammar.phrasings(name, side) for t in _texts(line)} for side in (True, False)
            )
            assert ours, name
            assert theirs, name
            assert not ours & theirs, name


def test_phrasings_written_later_move_none_to_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learnt from the lines of before can be asked the held-out ones of now."""
    now, later = grammar._held_out_lines(), grammar._headings()
    before = {name: lines for name, lines in later.items() if not name.startswith("more ")}
    assert len(before) < len(later)
    monkeypatch.setattr(grammar, "_headings", lambda: before)
    for name, kept in grammar._held_out_lines.__wrapped__().items():
        assert kept == now[name] & set(before[name])
        assert bool(now[name] - kept) == (f"more {name.removeprefix('ask ')}" in later)


def test_phrasings_of_nothing_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("[ask a.b]\nx\n[more a.c]\ny\n")
    monkeypatch.setattr(grammar, "FILES", tmp_path)
    with pytest.raises(Error, match=r"\[more a.c\] without \[ask a.c\]"):
        grammar._with_more(grammar._headings.__wrapped__())


def test_a_held_out_question_has_no_word_that_training_lacks() -> None:
    """Nobody could know what it means; of what is on or off, training has one."""
    for kind in (True, False):
        asked = [n for n in grammar.sections() if n.startswith("ask ") and n.startswith("ask plain.") == kind]
        ours, theirs = (
            {w for n in asked for line in grammar.phrasings(n, side) for t in _texts(line) for w in _words(t)}
            for side in (True, False)
        )
        assert ours and not ours - theirs
    sides = [[grammar.is_held_out("home.device", (str(name), on)) for on in (True, False)] for name in range(200)]
    assert [True, True] not in sides
    assert [True, False] in sides and [False, True] in sides and sides.count([False, False]) > 100


def _words(text: str) -> list[str]:
    return re.sub(r"{\w+}", " ", text).split()


FRAME = re.compile(r"^((please|hey|okay|can you|could you|i want you to|now|and|so) )+| please$")


def _texts(line: str) -> set[str]:
    """Without the frame that a line has itself or may get."""
    return {FRAME.sub("", re.sub(r"[^\w{} ]", "", text.lower())) for text in grammar.expand(line)}


def test_both_sides_are_drawn_from_every_section(
    sets: dict[str, list[Dialogue]], tasks: dict[str, list[Dialogue]]
) -> None:
    """No section is dead, and the sides of each are what the grammar says."""
    for split, held_out in (("train", False), ("held_out", True)):
        found = count(itertools.chain(sets[split], tasks[split])).phrasings
        for name in grammar.sections():
            if name.startswith("ask "):
                allowed = {f"{name}: {line}" for line in grammar.phrasings(name, held_out)}
                assert found & allowed, name
        assert all(line in grammar.phrasings(name, held_out) for name, _, line in (t.partition(": ") for t in found))


def test_every_scene_comes_in_both_splits(sets: dict[str, list[Dialogue]]) -> None:
    for split in BOTH:
        tasks = {d.task for d in sets[split]}
        assert tasks == {*SCENES, "mixed"}


def test_calls_are_offered_and_read_back_by_the_sdk(sets: dict[str, list[Dialogue]]) -> None:
    """A call is to a function in the prompt, fits its schema, and its text is what the SDK parses to it."""
    seen = set()
    for dialogue in itertools.chain(*sets.values()):
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in dialogue.tools}
        for number, turn in enumerate(dialogue.turns):
            for call in turn.tool_calls:
                seen.add(call.name)
                parameters = offered[call.name]
                assert set(parameters["required"]) <= set(call.arguments) <= set(parameters["properties"])
                kinds = {"string": (str,), "integer": (int,), "boolean": (bool,), "number": (int, float)}
                for name, value in call.arguments.items():
                    assert type(value) in kinds[parameters["properties"][name]["type"]]
                (parsed,) = ToolCallParser().push(call.raw)
                assert parsed == call
                assert dialogue.turns[number + 1].role == "tool"
                json.loads(dialogue.turns[number + 1].text)
    assert seen == set(TOOLS)


def test_the_calls_text_is_qwens() -> None:
    made = (c for d in dialogues(1, 500, "train") for t in d.turns for c in t.tool_calls)
    call = next(c for c in made if c.name == "set_light")
    on = "true" if call.arguments["on"] else "false"
    room = call.arguments["room"]
    inner = f'{{"name": "set_light", "arguments": {{"room": "{room}", "on": {on}}}}}'
    assert call.raw == f"<tool_call>\n{inner}\n</tool_call>"


def test_every_text_can_be_read_aloud(sets: dict[str, list[Dialogue]], tasks: dict[str, list[Dialogue]]) -> None:
    """Letters and a few signs: a figure, a brace or a slash would be read by each synthesizer in its own way."""
    for dialogue in itertools.chain(*sets.values(), *tasks.values()):
        for turn in dialogue.turns:
            if turn.role != "tool":
                assert re.fullmatch(r"[A-Za-z' ,.?!:-]*", turn.text), turn.text


def test_turns_follow_each_other_as_in_a_chat(sets: dict[str, list[Dialogue]]) -> None:
    follows = {"user": {"assistant"}, "tool": {"assistant"}, "assistant": {"user", "tool"}}
    for dialogue in itertools.chain(*sets.values()):
        roles = [t.role for t in dialogue.turns]
        assert roles[0] == "user"
        assert roles[-1] == "assistant"
        assert all(b in follows[a] for a, b in itertools.pairwise(roles))


def test_numbers_are_said_and_read_back() -> None:
    for n in [*range(2200), 9999, 12_345, 100_000, 999_999, 1_000_000]:
        assert canonical(speak(n)) == [str(n)], speak(n)
        assert canonical(f"It's {n} now") == ["it's", str(n), "now"]
    for n in range(-205, 206):
        assert canonical(speak(n / 10, 1)) == [f"{n / 10:g}"]
    assert canonical("one hundred and five, twenty-one and minus three point five") == ["105", "21", "and", "-3.5"]
    assert canonical("twenty, five") == ["20", "5"]
    assert [clock(0, 0), clock(14, 5), clock(23, 45)] == ["twelve o'clock", "two oh five", "eleven forty five"]
    assert [ordinal(n) for n in (1, 12, 20, 23)] == ["first", "twelfth", "twentieth", "twenty third"]


def test_sums_are_right(sets: dict[str, list[Dialogue]]) -> None:
    """Read from what is said, not from what made it."""
    checked = 0
    for dialogue in itertools.chain(*sets.values()):
        for turn in dialogue.turns:
            found = re.fullmatch(r"(.*?) (plus|minus|times|divided by|percent of) (.*) is (.*)\.", turn.text)
            if found and turn.role == "assistant":
                a, b, c = (float(canonical(found[n])[0]) for n in (1, 3, 4))
                right = {"plus": a + b, "minus": a - b, "times": a * b, "divided by": a / b, "percent of": a * b / 100}
                assert c == right[found[2]], turn.text
                checked += 1
    assert checked > 100


KNOWN = {("mile", 10): "16.1", ("kilometer", 10): "6.2", ("degree Celsius", 20): "68", ("degree Fahrenheit", 95): "35"}
KNOWN |= {("pound", 5): "2.3", ("ounce", 3): "85", ("hour", 2): "120", ("foot", 6): "1.8", ("inch", 1): "2.5"}


def test_units_are_right_and_rounded_as_one_says_it() -> None:
    first = {c.unit: c for c in reversed(CONVERSIONS)}
    for (unit, amount), said in KNOWN.items():
        assert f"{float(first[unit].rounded(amount)):g}" == said, unit


def test_lists_are_kept_right(sets: dict[str, list[Dialogue]]) -> None:
    """Followed through the dialogue by what was said, the list that is read back is the list that was made."""
    read = 0
    for dialogue in itertools.chain(*sets.values()):
        items: list[str] = []
        for turn in dialogue.turns:
            said = turn.text.removesuffix(".")
            if said.startswith("I added "):
                items += re.split(", | and ", said.removeprefix("I added "))
            elif said.startswith("I took off "):
                items.remove(said.removeprefix("I took off "))
            elif said == "Your list is empty":
                items = []
            elif said.startswith("Your list has "):
                assert re.split(", | and ", said.removeprefix("Your list has ")) == items
                read += 1
            elif turn.act == "lists.count" and turn.role == "assistant":
                assert canonical(said)[2] == str(len(items))
            elif turn.role == "assistant" and turn.act in ("lists.yes", "lists.no"):
                item = re.sub(r"^(Yes|No), (.*) is (not )?on your list$", r"\2", said)
                assert (item in items) == (turn.act == "lists.yes")
    assert read > 50


def test_plain_answers_are_right(tasks: dict[str, list[Dialogue]]) -> None:
    checked = 0
    for dialogue in itertools.chain(*tasks.values()):
        asked, answered = dialogue.turns
        words = answered.text.removesuffix(".").lower().split(", ")
        if dialogue.task == "plain.sort":
            assert words == sorted(words)
        elif dialogue.task == "plain.backward":
            assert ", ".join(reversed(words)) in asked.text.lower()
        elif dialogue.task == "plain.order":
            numbers = [int(canonical(word)[0]) for word in words]
            assert numbers == sorted(numbers)
        elif dialogue.task == "plain.count":
            numbers = [int(canonical(word)[0]) for word in words]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
        elif dialogue.task == "plain.letters":
            word, _, letters, _ = canonical(answered.text)
            assert len(word) == int(letters)
        else:
            continue
        checked += 1
    assert checked > 300


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texts", "--out", str(tmp_path), "--count", "0"]) == 1
    assert main(["tokenizer", "--texts", str(tmp_path / "none"), "--out", str(tmp_path / "t")]) == 1
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "stories.txt").write_text("Once.\n")
    assert main(["tokenizer", "--texts", str(tmp_path), "--out", str(tmp_path / "t")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("error: ") for line in said)
    assert "line 1: not a dialogue" in said[2]
