"""Small talk, names, repeating, what it can't do and what it did not understand."""

from __future__ import annotations

from dataclasses import replace

from samples.nano.texts.dialogues import Scene, system_with
from samples.nano.texts.grammar import words
from samples.nano.texts.scenes import sums, units
from samples.nano.texts.scenes.draw import Draw

# What an answer must hold, by act.
_FACTS = {
    "hello": "hello|hi", "how": "fine|well|good|great", "name": "nano", "can": "timers", "thanks": "welcome",
    "bye": "goodbye|bye", "joke": "a|the|they|it", "human": "no|model",
}  # fmt: skip


def small(draw: Draw) -> Scene:
    act = draw.random.choice(tuple(_FACTS))
    return Scene((draw.ask(f"talk.{act}"), draw.say(f"talk.{act}", [_FACTS[act]])))


def introduced(draw: Draw) -> Scene:
    """The user says who they are; sometimes asks later."""
    name = draw.one_of("talk.i_am", words("names"))
    turns = [draw.ask("talk.i_am", name, name=name), draw.say("talk.i_am", [name], name=name)]
    if draw.chance(0.6):
        turns += [draw.ask("talk.me"), draw.say("talk.me", [name], name=name)]
    return Scene(tuple(turns), keeps="user")


def named(draw: Draw) -> Scene:
    """The developer's system prompt says who the user is."""
    name = draw.one_of("talk.me", words("names"))
    turns = (draw.ask("talk.me", name), draw.say("talk.me", [name], name=name))
    return Scene(turns, system=system_with(f"The user's name is {name}."), keeps="user")


def nameless(draw: Draw) -> Scene:
    return Scene((draw.ask("talk.me"), draw.say("talk.unknown", ["don't know|do not know"])), keeps="user")


def again(draw: Draw) -> Scene:
    """The last answer once more."""
    before = draw.random.choice((sums.operation, units.convert, small))(draw)
    last = before.turns[-1]
    return replace(before, turns=(*before.turns, draw.ask("talk.again"), replace(last, facts=(last.text,))))


def refused(draw: Draw) -> Scene:
    city, name = draw.values("talk.refuse", lambda r: (r.choice(words("cities")), r.choice(words("names"))))
    asked = draw.ask("talk.refuse", (city, name), city=city, name=name)
    return Scene((asked, draw.say("talk.refuse", ["can't|cannot"])))


def unclear(draw: Draw) -> Scene:
    return Scene((draw.ask("talk.noise"), draw.say("talk.noise", ["didn't catch|didn't understand|say that again"])))
