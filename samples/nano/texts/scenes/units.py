"""Units converted through a tool, rounded as one would say it: whole from twenty on, one decimal below, "about" where
it is not exact. A model this small has no room for the tables."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from random import Random

from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.scenes.draw import Draw


@dataclass(frozen=True)
class Conversion:
    """`amount` of `unit` is `amount * factor + offset` of `to`; `most`: the largest amount asked."""

    unit: str
    to: str
    factor: Fraction
    most: int
    offset: Fraction = Fraction(0)
    step: int = 1

    def exactly(self, amount: int) -> Fraction:
        return amount * self.factor + self.offset

    def rounded(self, amount: int) -> Fraction:
        value = self.exactly(amount)
        return Fraction(round(value)) if abs(value) >= 20 else Fraction(round(value * 10), 10)


def _both(one: str, other: str, factor: Fraction, most: int) -> tuple[Conversion, Conversion]:
    return Conversion(one, other, factor, most), Conversion(other, one, 1 / factor, most)


CONVERSIONS = (
    *_both("mile", "kilometer", Fraction("1.609344"), 60),
    *_both("inch", "centimeter", Fraction("2.54"), 60),
    *_both("foot", "meter", Fraction("0.3048"), 60),
    *_both("pound", "kilogram", Fraction("0.45359237"), 60),
    *_both("gallon", "liter", Fraction("3.785411784"), 30),
    Conversion("ounce", "gram", Fraction("28.349523125"), 30),
    Conversion("kilometer", "meter", Fraction(1000), 60),
    Conversion("meter", "centimeter", Fraction(100), 60),
    Conversion("kilogram", "gram", Fraction(1000), 60),
    Conversion("hour", "minute", Fraction(60), 24),
    Conversion("minute", "second", Fraction(60), 60),
    Conversion("day", "hour", Fraction(24), 30),
    Conversion("week", "day", Fraction(7), 52),
    Conversion("year", "month", Fraction(12), 30),
    Conversion("degree Celsius", "degree Fahrenheit", Fraction(9, 5), 45, Fraction(32)),
    Conversion("degree Fahrenheit", "degree Celsius", Fraction(5, 9), 110, Fraction(-160, 9), step=5),
)


def convert(draw: Draw) -> Scene:
    which, amount = draw.values("units.convert", _amount)
    return Scene(_asked(draw, "units.convert", which, amount), needs=("convert",))


def two(draw: Draw) -> Scene:
    """A second amount of the same conversion, which only the turn before tells."""
    which, amount = draw.values("units.convert", _amount)
    other = _of(CONVERSIONS[which], draw.random)
    then = _asked(draw, "units.then", which, other, (amount,))
    return Scene((*_asked(draw, "units.convert", which, amount), *then), needs=("convert",))


def _amount(random: Random) -> tuple[int, int]:
    which = random.randrange(len(CONVERSIONS))
    return which, _of(CONVERSIONS[which], random)


def _of(conversion: Conversion, random: Random) -> int:
    return conversion.step * random.randint(1, conversion.most // conversion.step)


def _asked(draw: Draw, act: str, which: int, amount: int, before: tuple[int, ...] = ()) -> tuple[Turn, ...]:
    c = CONVERSIONS[which]
    value, exact = c.rounded(amount), c.exactly(amount)
    said = _quantity(Fraction(amount), c.unit)
    result = _quantity(value, c.to)
    slots = {"amount": said, "are": "is" if amount == 1 else "are", "result": result}
    asked = {"amount": said} if act == "units.then" else {"amount": said, "to": _plural(c.to)}
    answer = draw.say("units.exact" if value == exact else "units.about", [result], **slots)
    call = draw.call(tools.call("convert", amount=amount, unit=_plural(c.unit), to=_plural(c.to)))
    returned = draw.result(tools.result(amount=tools.number(value), exact=value == exact))
    return draw.ask(act, (which, *before, amount), **asked), call, returned, answer


def _quantity(value: Fraction, unit: str) -> str:
    return f"{numbers.speak(float(value), 1)} {unit if value == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    first, _, scale = unit.partition(" ")
    return numbers.count(2, first).removeprefix("two ") + (f" {scale}" if scale else "")
