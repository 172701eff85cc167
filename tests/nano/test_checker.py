"""The checker: what is right passes however it is worded, what is wrong does not."""

from __future__ import annotations

import itertools

import pytest

from edge_sdk.errors import Error
from samples.nano.texts import plain
from samples.nano.texts.checker import score
from samples.nano.texts.dialogues import Dialogue, Turn, dialogues
from samples.nano.texts.tools import call


def test_every_reference_answer_passes() -> None:
    judged = 0
    for split in ("train", "held_out"):
        for dialogue in itertools.chain(dialogues(11, 1500, split), plain.tasks(11, 800, split)):
            for number, turn in enumerate(dialogue.turns):
                if turn.role == "assistant":
                    result = score(dialogue, number, turn.text, turn.tool_calls)
                    assert result.success, (turn, result)
                    judged += 1
    assert judged > 5000


def test_another_turns_answer_does_not_pass() -> None:
    """Of other dialogues' answers to the same act, none whose facts differ."""
    by_act: dict[str, list[tuple[Dialogue, int, Turn]]] = {}
    for dialogue in dialogues(12, 1500, "train"):
        for number, turn in enumerate(dialogue.turns):
            if turn.role == "assistant" and turn.text:
                by_act.setdefault(turn.act, []).append((dialogue, number, turn))
    wrong = 0
    for answers in by_act.values():
        for (dialogue, number, turn), (_, _, other) in itertools.pairwise(answers):
            if turn.facts != other.facts and turn.text != other.text:
                assert not score(dialogue, number, other.text).success, (turn, other)
                wrong += 1
    assert wrong > 500


def _one(text: str, asked: str, *facts: str, calls: tuple[object, ...] = ()) -> Dialogue:
    answer = Turn("assistant", text, calls, facts)  # type: ignore[arg-type]
    return Dialogue("one", "train", "test", None, (), (Turn("user", asked), answer))


LIGHT = _one("The kitchen light is on.", "Turn on the kitchen light.", "kitchen", "on")
SUM = _one("Twenty plus nine is twenty nine.", "What's twenty plus nine?", "twenty nine")
LIST = _one("Your list has milk, eggs and tea.", "What's on my list?", "milk", "eggs", "tea")
COLD = _one("It will be minus three degrees in Oslo.", "How cold is it in Oslo?", "minus three degrees", "Oslo")


@pytest.mark.parametrize(
    ("dialogue", "answer", "right"),
    [
        (LIGHT, "Kitchen light on.", True),
        (LIGHT, "The light in the kitchen is off.", False),
        (LIGHT, "The hall and the kitchen light are on.", False),
        (LIGHT, "Okay.", False),
        (SUM, "It's 29.", True),
        (SUM, "That makes twenty-nine.", True),
        (SUM, "That is nine.", False),
        (SUM, "Twenty plus nine is twenty nine or thirty.", False),
        (SUM, "One hundred twenty nine.", False),
        (LIST, "You have tea, milk and eggs.", True),
        (LIST, "Milk and eggs.", False),
        (LIST, "Milk, eggs, tea and soap.", False),
        (COLD, "-3 degrees in Oslo.", True),
        (COLD, "Three degrees in Oslo.", False),
        (COLD, "Minus three degrees in Rome.", False),
        (COLD, "In Oslo it will be minus three degrees" + " and so on" * 12, False),
    ],
)
def test_words(dialogue: Dialogue, answer: str, right: bool) -> None:
    assert score(dialogue, 1, answer).success is right


LENGTH = call("set_timer", minutes=5)
ON = call("set_light", room="hall", on=True)


@pytest.mark.parametrize(
    ("wanted", "made", "right"),
    [
        ((LENGTH,), (call("set_timer", minutes=5),), True),
        ((LENGTH,), (call("set_timer", minutes=6),), False),
        ((LENGTH,), (call("set_timer", minutes="5"),), False),
        ((LENGTH,), (call("set_timer", minutes=5, hours=0),), False),
        ((LENGTH,), (), False),
        ((LENGTH,), (LENGTH, LENGTH), False),
        ((ON,), (call("set_light", on=True, room="hall"),), True),
        ((ON,), (call("set_light", room="hall", on=1),), False),
        ((), (LENGTH,), False),
    ],
)
def test_calls(wanted: tuple[object, ...], made: tuple[object, ...], right: bool) -> None:
    dialogue = _one("Fine.", "Hello.", "fine", calls=wanted)
    assert score(dialogue, 1, "Fine.", made).success is right  # type: ignore[arg-type]


def test_a_sum_is_the_same_in_any_order() -> None:
    """Where it is one: of plus and times. 5.0 is 5."""
    for operation, either_way in (
        ("plus", True),
        ("times", True),
        ("minus", False),
        ("over", False),
        ("percent", False),
    ):
        asked = _one("", "A sum?", calls=(call("calculate", a=12, operation=operation, b=5),))
        for made, right in (((5, 12), either_way), ((12, 5), True), ((12.0, 5.0), True), ((12, 6), False)):
            given = call("calculate", a=made[0], operation=operation, b=made[1])
            assert score(asked, 1, "", (given,)).success == right, (operation, made)


def test_a_sums_number_is_the_answers() -> None:
    """Not one that the question has, too."""
    for dialogue in dialogues(3, 4000, "held_out"):
        for number, turn in enumerate(dialogue.turns):
            if turn.act == "sums.over" and turn.role == "assistant" and turn.facts != (turn.text,):  # said again
                a, b = turn.text.split(" is ")[0], turn.text.split(" is ")[1].removesuffix(".")
                assert score(dialogue, number, f"That's {b}.").success
                assert score(dialogue, number, f"It's {b}.").success
                assert not score(dialogue, number, f"{a} makes a number.").success


def test_only_an_assistants_turn_can_be_judged() -> None:
    for turn in (0, 2, -1):
        with pytest.raises(Error, match="no assistant's turn"):
            score(LIGHT, turn, "")
