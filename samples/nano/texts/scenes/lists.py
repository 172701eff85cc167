"""Shopping and to-do lists kept in the conversation itself: what was added and taken off is to be remembered."""

from __future__ import annotations

from random import Random

from samples.nano.texts import numbers
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.grammar import words
from samples.nano.texts.scenes.draw import Draw

MAX_ITEMS = 4


def shopping(draw: Draw) -> Scene:
    return _kept(draw, "shopping", words("shopping"))


def chores(draw: Draw) -> Scene:
    return _kept(draw, "to-do", words("chores"))


def _kept(draw: Draw, name: str, all_items: tuple[str, ...]) -> Scene:
    kept: list[str] = []
    turns = _first(draw, name, all_items, kept)
    for _ in range(draw.random.choice((0, 1, 1, 2, 3))):
        turns += draw.random.choice((_more, _more, _remove, _check))(draw, name, all_items, kept)
    turns += draw.random.choice((_read, _read, _read, _count, _cleared))(draw, name, all_items, kept)
    return Scene(tuple(turns), keeps="list")


def _first(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    if draw.chance(0.15):
        items = draw.values("lists.what", lambda r: _some(r, all_items, kept))
        turns = [draw.ask("lists.vague", list=name), draw.say("lists.what", ["what"])]
        turns.append(draw.ask("lists.what", items, items=numbers.spoken_list(list(items))))
    else:
        items = draw.values("lists.add", lambda r: _some(r, all_items, kept))
        turns = [draw.ask("lists.add", items, list=name, items=numbers.spoken_list(list(items)))]
    return [*turns, _added(draw, items, kept)]


def _more(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    if len(kept) >= MAX_ITEMS:
        return []
    items = draw.values("lists.more", lambda r: _some(r, all_items, kept))
    asked = draw.ask("lists.more", items, items=numbers.spoken_list(list(items)))
    return [asked, _added(draw, items, kept)]


def _remove(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    """What is removed is known from the history, so no value is held out here; the list as a whole is new."""
    if not kept or draw.chance(0.15):
        item = draw.random.choice([i for i in all_items if i not in kept])
        return [draw.ask("lists.remove", item=item), draw.say("lists.missing", ["no|not|isn't"])]
    item = draw.random.choice(kept)
    kept.remove(item)
    return [draw.ask("lists.remove", item=item), draw.say("lists.remove", [item], item=item)]


def _check(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    there = bool(kept) and draw.chance(0.5)
    item = draw.random.choice(kept if there else [i for i in all_items if i not in kept])
    answer = draw.say("lists.yes" if there else "lists.no", ["yes" if there else "no", item], item=item)
    return [draw.ask("lists.check", item=item, list=name), answer]


def _read(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    asked = draw.ask("lists.read", list=name)
    if not kept:
        return [asked, draw.say("lists.empty", ["empty|nothing"])]
    return [asked, draw.say("lists.read", kept, items=numbers.spoken_list(kept))]


def _count(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    asked = draw.ask("lists.count", list=name)
    if not kept:
        return [asked, draw.say("lists.empty", ["empty|nothing|zero"])]
    are = "is" if len(kept) == 1 else "are"
    said = draw.say("lists.count", [numbers.speak(len(kept))], are=are, count=numbers.count(len(kept), "thing"))
    return [asked, said]


def _cleared(draw: Draw, name: str, all_items: tuple[str, ...], kept: list[str]) -> list[Turn]:
    kept.clear()
    return [draw.ask("lists.clear", list=name), draw.say("lists.empty", ["empty|clear"])]


def _some(random: Random, all_items: tuple[str, ...], kept: list[str]) -> tuple[str, ...]:
    most = min(3, MAX_ITEMS + 1 - len(kept))
    return tuple(random.sample([i for i in all_items if i not in kept], random.randint(1, most)))


def _added(draw: Draw, items: tuple[str, ...], kept: list[str]) -> Turn:
    kept.extend(items)
    return draw.say("lists.add", items, items=numbers.spoken_list(list(items)))
