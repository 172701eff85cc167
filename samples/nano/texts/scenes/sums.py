"""Arithmetic through a tool, in numbers as they are asked aloud: two places, tables up to twelve."""

from __future__ import annotations

from random import Random

from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.scenes.draw import Draw

Sum = tuple[int, int]
_NEEDS = ("calculate",)


def operation(draw: Draw) -> Scene:
    act = draw.random.choice(tuple(_OPERANDS))
    a, b = draw.values(act, _OPERANDS[act])
    return Scene(
        (
            draw.ask(act, (a, b), a=numbers.speak(a), b=numbers.speak(b)),
            *_worked_out(draw, act, a, b, _value(act, a, b)),
            draw.say(act, [_is(_value(act, a, b))], **_said(a=a, b=b, c=_value(act, a, b))),
        ),
        needs=_NEEDS,
    )


def percent(draw: Draw) -> Scene:
    share, whole = draw.values("sums.percent", _percent)
    value = share * whole // 100
    return Scene(
        (
            draw.ask("sums.percent", (share, whole), a=numbers.speak(share), b=numbers.speak(whole)),
            *_worked_out(draw, "sums.percent", share, whole, value),
            draw.say("sums.percent", [_is(value)], **_said(a=share, b=whole, c=value)),
        ),
        needs=_NEEDS,
    )


def chain(draw: Draw) -> Scene:
    """A sum, and one or two more steps from where it stands."""
    first = operation(draw)
    value = int(numbers.canonical(first.turns[-1].facts[0])[-1])
    turns, so_far = list(first.turns), f"{first.turns[0].act} {first.turns[0].values}"
    for _ in range(draw.random.choice((1, 1, 2))):
        act = draw.random.choice(("sums.then_plus", "sums.then_minus")) if value > 4 else "sums.then_plus"
        most = min(value - 1, 20) if act.endswith("minus") else 20
        b = draw.random.randint(1, most)
        so_far = f"{so_far}, {b}"  # new as a whole, since it begins with values of our side
        turns.append(draw.ask(act, so_far, b=numbers.speak(b)))
        before, value = value, value + (-b if act.endswith("minus") else b)
        turns += _worked_out(draw, act, before, b, value)
        turns.append(draw.say("sums.then", [numbers.speak(value)], c=numbers.speak(value)))
    return Scene(tuple(turns), needs=_NEEDS)


def more(draw: Draw) -> Scene:
    a, b = draw.values("sums.more", lambda r: tuple(r.sample(range(1, 200), 2)))
    answer = numbers.speak(max(a, b))
    return Scene(
        (
            draw.ask("sums.more", (a, b), a=numbers.speak(a), b=numbers.speak(b)),
            draw.say("sums.more", [f"{answer} is"], c=answer),
        )
    )


def _two(random: Random) -> Sum:
    return random.randint(1, 99), random.randint(1, 99)


def _difference(random: Random) -> Sum:
    a, b = sorted(random.sample(range(1, 100), 2))
    return b, a


def _table(random: Random) -> Sum:
    return random.randint(2, 12), random.randint(2, 12)


def _quotient(random: Random) -> Sum:
    a, b = _table(random)
    return a * b, b


def _percent(random: Random) -> Sum:
    share = random.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90))
    return share, random.choice([n for n in range(4, 401) if n * share % 100 == 0])


_OPERANDS = {"sums.plus": _two, "sums.minus": _difference, "sums.times": _table, "sums.over": _quotient}


def _value(act: str, a: int, b: int) -> int:
    return {"sums.plus": a + b, "sums.minus": a - b, "sums.times": a * b, "sums.over": a // b}[act]


def _is(value: int) -> str:
    """The fact that an answer must have: alone, the number could be one that the question has, too."""
    return "|".join(f"{how} {numbers.speak(value)}" for how in ("is", "it's", "that's", "makes"))


def _worked_out(draw: Draw, act: str, a: int, b: int, value: int) -> tuple[Turn, Turn]:
    """The call and what comes back. `act` is "sums.plus" or "sums.then_plus"."""
    operation = act.rpartition(".")[2].removeprefix("then_")
    return draw.call(tools.call("calculate", a=a, operation=operation, b=b)), draw.result(tools.result(value=value))


def _said(**values: int) -> dict[str, str]:
    return {name: numbers.speak(value) for name, value in values.items()}
