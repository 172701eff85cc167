"""Ordinary text for the backbone's first training: small tasks about words and numbers, and running text.

The tasks are dialogues like the others, so the same checker measures how much of them a later stage forgot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from samples.nano.texts import numbers
from samples.nano.texts.dialogues import Dialogue, Split, Turn
from samples.nano.texts.grammar import choose, lines, pairs, sentence, words
from samples.nano.texts.scenes.draw import Draw

Exchange = tuple[Turn, Turn]


def tasks(seed: int, count: int, split: Split) -> Iterator[Dialogue]:
    """One question and its answer each; `task` is "plain.spell" and so on."""
    for n in range(count):
        random = Random(f"plain/{seed}/{split}/{n}")
        name = random.choice(tuple(TASKS))
        turns = TASKS[name](Draw(random, split == "held_out"), f"plain.{name}")
        yield Dialogue(f"plain-{split}-{seed}-{n:06}", split, f"plain.{name}", None, (), turns)


def stories(seed: int, count: int) -> Iterator[str]:
    """Paragraphs of four to six sentences."""
    for n in range(count):
        random = Random(f"story/{seed}/{n}")
        slots = {
            "name": random.choice(words("names")),
            "weekday": random.choice(words("weekdays")),
            "season": random.choice(("spring", "summer", "autumn", "winter")),
            "place": random.choice(("river", "bridge", "tower", "market", "harbor", "orchard", "station", "castle")),
            "thing": random.choice(words("plain")),
            "animal": random.choice([animal for animal, _ in pairs("sounds")]),
            "weather": random.choice(words("conditions")),
            "years": numbers.count(random.randint(2, 40), "year"),
        }
        chosen = [random.choice(lines("say story.begin"))]
        chosen += random.sample(lines("say story.middle"), random.randint(1, 3))
        chosen += [random.choice(lines("say story.then")), random.choice(lines("say story.end"))]
        yield " ".join(sentence(choose(line, random).format(**slots)) for line in chosen)


def _spell(draw: Draw, act: str) -> Exchange:
    word = draw.one_of(act, words("plain"))
    letters = " ".join(word)
    return draw.ask(act, word, word=word), draw.say(act, [letters], letters=letters)


def _letters(draw: Draw, act: str) -> Exchange:
    word = draw.one_of(act, words("plain"))
    said = numbers.count(len(word), "letter")
    return draw.ask(act, word, word=word), draw.say(act, [said], word=word, count=said)


def _first(draw: Draw, act: str) -> Exchange:
    word = draw.one_of(act, words("plain"))
    return draw.ask(act, word, word=word), draw.say(act, [f"with {word[0]}"], word=word, other=word[0])


def _longest(draw: Draw, act: str) -> Exchange:
    """One word is longer than the others by at least a letter."""
    while True:
        some = draw.values(act, lambda r: tuple(r.sample(words("plain"), 3)))
        by_length = sorted(some, key=len)
        if len(by_length[-1]) > len(by_length[-2]):
            break
    return (
        draw.ask(act, some, list=_listed(some)),
        draw.say(act, [f"{by_length[-1]} is"], word=by_length[-1]),
    )


def _words(arrange: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Callable[[Draw, str], Exchange]:
    def exchange(draw: Draw, act: str) -> Exchange:
        some = draw.values(act, lambda r: tuple(r.sample(words("plain"), r.randint(3, 5))))
        said = _listed(arrange(some))
        return draw.ask(act, some, list=_listed(some)), draw.say(act, [said], list=said)

    return exchange


def _order(draw: Draw, act: str) -> Exchange:
    some = draw.values(act, lambda r: tuple(r.sample(range(100), r.randint(3, 5))))
    said = _listed(tuple(map(numbers.speak, sorted(some))))
    return draw.ask(act, some, list=_listed(tuple(map(numbers.speak, some)))), draw.say(act, [said], list=said)


def _count(draw: Draw, act: str) -> Exchange:
    first, last = draw.values(act, _range)
    said = _listed(tuple(numbers.speak(n) for n in range(first, last + 1)))
    asked = draw.ask(act, (first, last), a=numbers.speak(first), b=numbers.speak(last))
    return asked, draw.say(act, [said], list=said)


def _known(section: str) -> Callable[[Draw, str], Exchange]:
    """A fact of a table. Facts can't be held out, since nobody could know them: only phrasings are."""

    def exchange(draw: Draw, act: str) -> Exchange:
        word, other = draw.random.choice(pairs(section))
        return draw.ask(act, word=word), draw.say(act, [other], word=word, other=other)

    return exchange


def _following(section: str) -> Callable[[Draw, str], Exchange]:
    def exchange(draw: Draw, act: str) -> Exchange:
        names = words(section)
        at = draw.random.randrange(len(names))
        other = names[(at + 1) % len(names)]
        return draw.ask(act, word=names[at]), draw.say(act, [f"comes {other}"], word=names[at], other=other)

    return exchange


def _range(random: Random) -> tuple[int, int]:
    first = random.randint(1, 60)
    return first, first + random.randint(2, 8)


def _listed(some: tuple[str, ...]) -> str:
    return ", ".join(some)


TASKS: dict[str, Callable[[Draw, str], Exchange]] = {
    "spell": _spell,
    "letters": _letters,
    "first": _first,
    "longest": _longest,
    "sort": _words(lambda some: tuple(sorted(some))),
    "backward": _words(lambda some: some[::-1]),
    "repeat": _words(lambda some: some),
    "order": _order,
    "count": _count,
    "opposite": _known("opposites"),
    "capital": _known("capitals"),
    "sound": _known("sounds"),
    "color": _known("colors"),
    "home": _known("homes"),
    "plural": _known("plurals"),
    "after": _following("weekdays"),
    "month": _following("months"),
}
