"""Time and date, by tools; hours after a time, by reckoning."""

from __future__ import annotations

import datetime
from random import Random

from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene
from samples.nano.texts.grammar import words
from samples.nano.texts.scenes.draw import Draw

_ERRORS = ("no clock", "clock not set", "not available")


def now(draw: Draw) -> Scene:
    hour, minute = draw.values("clock.now", _moment)
    turns = [draw.ask("clock.now", (hour, minute)), draw.call(tools.call("get_time"))]
    if draw.chance(0.06):
        turns += [draw.result(tools.failed(draw.random.choice(_ERRORS))), draw.say("clock.failed", ["can't|cannot"])]
    else:
        said, part = numbers.clock(hour, minute), numbers.part_of_day(hour)
        turns.append(draw.result(tools.result(time=f"{hour:02}:{minute:02}")))
        turns.append(draw.say("clock.now", [said, part.split()[-1]], time=said, part=part))
    return Scene(tuple(turns), needs=("get_time",))


def in_a_city(draw: Draw) -> Scene:
    city, hour, minute = draw.values("clock.city", lambda r: (r.choice(words("cities")), *_moment(r)))
    said, part = numbers.clock(hour, minute), numbers.part_of_day(hour)
    turns = (
        draw.ask("clock.city", (city, hour, minute), city=city),
        draw.call(tools.call("get_time", city=city)),
        draw.result(tools.result(time=f"{hour:02}:{minute:02}")),
        draw.say("clock.city", [said, part.split()[-1], city], time=said, part=part, city=city),
    )
    return Scene(turns, needs=("get_time",))


def date(draw: Draw) -> Scene:
    day = draw.values("clock.date", _day)
    weekday, month, number = _said(day)
    turns = (
        draw.ask("clock.date", day),
        draw.call(tools.call("get_date")),
        draw.result(_dated(day)),
        draw.say("clock.date", [weekday, f"{month} {number}"], weekday=weekday, month=month, day=number),
    )
    return Scene(turns, needs=("get_date",))


def weekday(draw: Draw) -> Scene:
    """The tool tells today's date; which weekday another day is follows from it."""
    offsets = {"today": 0, "tomorrow": 1, "the day after tomorrow": 2}
    day, when = draw.values("clock.weekday", lambda r: (_day(r), r.choice(tuple(offsets))))
    answer = _said(day + datetime.timedelta(days=offsets[when]))[0]
    turns = (
        draw.ask("clock.weekday", (day, when), when=when),
        draw.call(tools.call("get_date")),
        draw.result(_dated(day)),
        draw.say("clock.weekday", [answer], when=when, weekday=answer),
    )
    return Scene(turns, needs=("get_date",))


def later(draw: Draw) -> Scene:
    hour, minute, hours = draw.values(
        "clock.later", lambda r: (r.randint(1, 12), r.choice((0, 10, 15, 20, 30, 40, 45)), r.randint(1, 9))
    )
    answer = numbers.clock(hour + hours, minute)
    asked = {"time": numbers.clock(hour, minute), "hours": numbers.count(hours, "hour")}
    return Scene(
        (draw.ask("clock.later", (hour, minute, hours), **asked), draw.say("clock.later", [answer], time=answer))
    )


def _moment(random: Random) -> tuple[int, int]:
    return random.randrange(24), random.randrange(60)


def _day(random: Random) -> datetime.date:
    return datetime.date(2026, 1, 1) + datetime.timedelta(days=random.randrange(3 * 365))


def _said(day: datetime.date) -> tuple[str, str, str]:
    return words("weekdays")[day.weekday()], words("months")[day.month - 1], numbers.ordinal(day.day)


def _dated(day: datetime.date) -> str:
    return tools.result(date=day.isoformat(), weekday=words("weekdays")[day.weekday()])
