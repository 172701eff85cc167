"""Timers and alarms: set, asked back, corrected, cancelled, and tools that fail."""

from __future__ import annotations

from random import Random

from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.scenes.draw import Draw

Length = tuple[tuple[str, int], ...]  # ("hours", 1), ("minutes", 30): the arguments of the tool, as they were said
_ERRORS = ("too many timers", "timer not available", "no memory left")


def set_timer(draw: Draw) -> Scene:
    """Set, sometimes corrected in the next turn."""
    length = draw.values("timers.set", _length)
    turns = [draw.ask("timers.set", length, length=_said(length)), *_started(draw, length, "timers.set")]
    if not turns[-1].act.endswith("failed") and draw.chance(0.25):
        other = _length(draw.random)
        turns.append(draw.ask("timers.change", (length, other), length=_said(other)))
        turns += _started(draw, other, "timers.change", may_fail=False)
    return Scene(tuple(turns), needs=("set_timer",))


def clarified(draw: Draw) -> Scene:
    length = draw.values("timers.length", _length)
    turns = (
        draw.ask("timers.vague"),
        draw.say("timers.which", ["how long"]),
        draw.ask("timers.length", length, length=_said(length)),
        *_started(draw, length, "timers.set"),
    )
    return Scene(turns, needs=("set_timer",))


def cancel(draw: Draw) -> Scene:
    turns = [draw.ask("timers.cancel"), draw.call(tools.call("cancel_timer"))]
    if draw.chance(0.3):
        turns += [draw.result(tools.failed("no timer")), draw.say("timers.none", ["no timer"])]
    else:
        turns += [draw.result(tools.result(ok=True)), draw.say("timers.cancel", ["off|stopped|cancelled"])]
    return Scene(tuple(turns), needs=("cancel_timer",))


def left(draw: Draw) -> Scene:
    minutes, seconds = draw.values("timers.left", lambda r: (r.randint(2, 59), r.choice((0, r.randint(2, 59)))))
    parts: Length = (("minutes", minutes), ("seconds", seconds))[: 2 if seconds else 1]
    turns = (
        draw.ask("timers.left", (minutes, seconds)),
        draw.call(tools.call("get_timer")),
        draw.result(tools.result(minutes=minutes, seconds=seconds)),
        draw.say("timers.left", [_said(parts)], length=_said(parts)),
    )
    return Scene(turns, needs=("get_timer",))


def set_alarm(draw: Draw) -> Scene:
    hour, minute = draw.values("timers.alarm", _time)
    turns = (draw.ask("timers.alarm", (hour, minute), time=_ways(draw, hour, minute)), *_armed(draw, hour, minute))
    return Scene(turns, needs=("set_alarm",))


def alarm_clarified(draw: Draw) -> Scene:
    hour, minute = draw.values("timers.time", _time)
    turns = (
        draw.ask("timers.alarm_vague"),
        draw.say("timers.when", ["time|when"]),
        draw.ask("timers.time", (hour, minute), time=_ways(draw, hour, minute)),
        *_armed(draw, hour, minute),
    )
    return Scene(turns, needs=("set_alarm",))


def cancel_alarm(draw: Draw) -> Scene:
    hour, minute = draw.values("timers.no_alarm", _time)
    said = _full(hour, minute)
    turns = (
        draw.ask("timers.no_alarm", (hour, minute), time=said),
        draw.call(tools.call("cancel_alarm", time=f"{hour:02}:{minute:02}")),
        draw.result(tools.result(ok=True)),
        draw.say("timers.no_alarm", [said, "off"], time=said),
    )
    return Scene(turns, needs=("cancel_alarm",))


def _started(draw: Draw, length: Length, act: str, may_fail: bool = True) -> tuple[Turn, ...]:
    asked = draw.call(tools.call("set_timer", **dict(length)))
    if may_fail and draw.chance(0.06):
        failed = draw.result(tools.failed(draw.random.choice(_ERRORS)))
        return asked, failed, draw.say("timers.failed", ["couldn't|can't|could not|cannot"])
    return asked, draw.result(tools.result(ok=True)), draw.say(act, [_said(length)], length=_said(length))


def _armed(draw: Draw, hour: int, minute: int) -> tuple[Turn, ...]:
    said = _full(hour, minute)
    call = draw.call(tools.call("set_alarm", time=f"{hour:02}:{minute:02}"))
    return call, draw.result(tools.result(ok=True)), draw.say("timers.alarm", [said], time=said)


def _length(random: Random) -> Length:
    kind = random.choice(("minutes", "minutes", "minutes", "hours", "seconds", "both"))
    if kind == "both":
        return ("hours", random.randint(1, 5)), ("minutes", random.choice(range(5, 60, 5)))
    most = {"minutes": 59, "hours": 24, "seconds": 90}[kind]
    return ((kind, random.randint(1, most)),)


def _said(length: Length) -> str:
    return " and ".join(numbers.count(n, unit[:-1]) for unit, n in length)


def _time(random: Random) -> tuple[int, int]:
    return random.randrange(24), random.choice(range(0, 60, 5))


def _full(hour: int, minute: int) -> str:
    return f"{numbers.clock(hour, minute)} {numbers.part_of_day(hour)}"


def _ways(draw: Draw, hour: int, minute: int) -> str:
    """Users have more ways to say a time than the assistant."""
    part, this, after = numbers.part_of_day(hour), numbers.clock(hour, 0).split()[0], (hour + 1) % 24
    following = numbers.clock(after, 0).split()[0]
    if minute == 30 and draw.chance(0.4):
        return f"half past {this} {part}"
    if minute == 15 and draw.chance(0.4):
        return f"quarter past {this} {part}"
    if minute == 45 and numbers.part_of_day(after) == part and draw.chance(0.4):
        return f"quarter to {following} {part}"
    short = "a m" if hour < 12 else "p m"
    return (
        f"{numbers.clock(hour, minute)} {part}"
        if draw.chance(0.7) or minute == 0
        else (f"{numbers.clock(hour, minute)} {short}")
    )
