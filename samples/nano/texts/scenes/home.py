"""Lights, devices and heating: state that a follow-up changes elsewhere, a room asked back, a device not found."""

from __future__ import annotations

from random import Random

from edge_sdk.events import ToolCall
from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.grammar import words
from samples.nano.texts.scenes.draw import Draw


def light(draw: Draw) -> Scene:
    """One light; sometimes "and the hall too"."""
    room, on = draw.values("home.light", _room_and_state)
    turns = [draw.ask("home.light", (room, on), room=room, on=_word(on)), *_lit(draw, room, on)]
    if draw.chance(0.3):
        other = draw.random.choice([r for r in words("rooms") if r != room])
        turns += [draw.ask("home.more", (room, on, other), room=other), *_lit(draw, other, on)]
    return Scene(tuple(turns), needs=("set_light",))


def clarified(draw: Draw) -> Scene:
    room, on = draw.values("home.room", _room_and_state)
    turns = (
        draw.ask("home.vague", on=_word(on)),
        draw.say("home.which", ["which room|what room"]),
        draw.ask("home.room", (room, on), room=room),
        *_lit(draw, room, on),
    )
    return Scene(turns, needs=("set_light",))


def dim(draw: Draw) -> Scene:
    room, percent = draw.values("home.dim", lambda r: (r.choice(words("rooms")), r.choice(range(5, 100, 5))))
    said = numbers.speak(percent)
    turns = (
        draw.ask("home.dim", (room, percent), room=room, percent=said),
        draw.call(tools.call("dim_light", room=room, brightness=percent)),
        draw.result(tools.result(ok=True)),
        draw.say("home.dim", [room, f"{said} percent"], room=room, percent=said),
    )
    return Scene(turns, needs=("dim_light",))


def device(draw: Draw) -> Scene:
    name, on = draw.values("home.device", lambda r: (r.choice(words("devices")), r.random() < 0.5))
    turns = [
        draw.ask("home.device", (name, on), device=name, on=_word(on)),
        draw.call(tools.call("set_device", device=name, on=on)),
    ]
    if draw.chance(0.12):
        turns += [draw.result(tools.failed("device not found")), draw.say("home.lost", ["can't|cannot"], device=name)]
    else:
        turns.append(draw.result(tools.result(ok=True)))
        turns.append(draw.say("home.device", [name, _word(on)], device=name, on=_word(on)))
    return Scene(tuple(turns), needs=("set_device",))


def heating(draw: Draw) -> Scene:
    degrees = draw.values("home.heat", lambda r: r.randint(10, 29))
    said = numbers.speak(degrees)
    turns = (
        draw.ask("home.heat", degrees, degrees=said),
        draw.call(tools.call("set_temperature", degrees=degrees)),
        draw.result(tools.result(ok=True)),
        draw.say("home.heat", [said], degrees=said),
    )
    return Scene(turns, needs=("set_temperature",))


def _lit(draw: Draw, room: str, on: bool) -> tuple[Turn, ...]:
    call: ToolCall = tools.call("set_light", room=room, on=on)
    said = draw.say("home.light", [room, _word(on)], room=room, on=_word(on))
    return draw.call(call), draw.result(tools.result(ok=True)), said


def _room_and_state(random: Random) -> tuple[str, bool]:
    return random.choice(words("rooms")), random.random() < 0.5


def _word(on: bool) -> str:
    return "on" if on else "off"
