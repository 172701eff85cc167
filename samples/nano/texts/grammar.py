"""Phrasings and words as data: the files below grammar/, and which of their lines only evaluation may see.

    [ask timers.set]            what a user says; some of its lines are held out
    [more timers.set]           written later: more of the same, of which some are held out by themselves, so that what
                                was held out before stays so, and what was not
    [say timers.set]            what the assistant says
    [words rooms]               values
    [around request]            frames around a request, {} is the request

A line is a template: `{name}` takes a value, `(a|b|)` one of these. `#` begins a comment.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from random import Random

from edge_sdk.errors import Error

FILES = Path(__file__).parent / "grammar"
HELD_OUT_PHRASINGS = 0.25  # of each section's lines, from three lines on
HELD_OUT_VALUES = 0.15
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_HEADING = re.compile(r"\[(ask|more|say|words|around) ([a-z_]+(?:\.[a-z_]+)?)\]")


@lru_cache
def sections() -> Mapping[str, tuple[str, ...]]:
    """Lines by section, "ask timers.set" and so on, in the order of the files; what was written later comes last."""
    found = _headings()
    return {name: both for name, both in _with_more(found).items() if not name.startswith("more ")}


def _with_more(found: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    alone = [name for name in found if name.startswith("more ") and f"ask {name[5:]}" not in found]
    if alone:
        raise Error(f"the grammar has [{alone[0]}] without [ask {alone[0][5:]}]")
    return {name: (*lines, *found.get(_more_of(name), ())) for name, lines in found.items()}


def _more_of(name: str) -> str:
    kind, _, act = name.partition(" ")
    return f"more {act}" if kind == "ask" else ""


@lru_cache
def _headings() -> Mapping[str, tuple[str, ...]]:
    """Lines by heading, in the order of the files."""
    found: dict[str, list[str]] = {}
    for path in sorted(FILES.glob("*.txt")):
        heading = ""
        for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if line.startswith("["):
                match = _HEADING.fullmatch(line)
                if not match or line[1:-1] in found:
                    raise Error(f"'{path.name}', line {number}: {line} is no new heading of a section")
                found[heading := line[1:-1]] = []
            elif line and not heading:
                raise Error(f"'{path.name}', line {number}: a line before the first heading")
            elif line:
                found[heading].append(line)
    return {name: tuple(lines) for name, lines in found.items()}


def lines(name: str) -> tuple[str, ...]:
    try:
        return sections()[name]
    except KeyError:
        raise Error(f"the grammar has no section [{name}]") from None


def words(name: str) -> tuple[str, ...]:
    return lines(f"words {name}")


def pairs(name: str) -> tuple[tuple[str, str], ...]:
    """Lines "hot = cold" of a section of words."""
    split = [line.split(" = ") for line in words(name)]
    return tuple((left, right) for left, right in split)


@lru_cache
def phrasings(name: str, held_out: bool) -> tuple[str, ...]:
    """The lines of an `ask` section that one side may use; which they are depends on the grammar's lines alone.
    Sections of one or two lines are whole on both sides."""
    kept = _held_out_lines().get(name)
    if kept is None:
        return lines(name)
    return tuple(line for line in lines(name) if (line in kept) == held_out)


@lru_cache
def _held_out_lines() -> Mapping[str, frozenset[str]]:
    """Of each section those of the lowest hashes, but none with a word that training would then read nowhere: what it
    has never seen no model can know, and which words those are would be chance."""
    asked = {name: found for name, found in _headings().items() if name.startswith("ask ") and len(found) > 2}
    later = {name: found for name in asked if (found := _headings().get(_more_of(name)))}
    kept: dict[str, frozenset[str]] = {}
    # Dialogues and the small tasks in text alone are two corpora: what one trains the other may lack.
    for kind in (True, False):
        first, more = ({n: x for n, x in y.items() if n.startswith("ask plain.") == kind} for y in (asked, later))
        left = Counter(word for found in first.values() for line in found for word in _literal_words(line))
        kept |= _chosen(first, left)
        left.update(word for found in more.values() for line in found for word in _literal_words(line))
        kept |= {name: kept[name] | lines for name, lines in _chosen(more, left).items()}
    return kept


def _chosen(asked: Mapping[str, tuple[str, ...]], left: Counter[str]) -> dict[str, frozenset[str]]:
    """`left`: how many lines of training have a word; what is chosen is taken from it."""
    kept = {}
    for name, found in asked.items():
        chosen: set[str] = set()
        for line in sorted(found, key=_hash):
            if len(chosen) < math.ceil(HELD_OUT_PHRASINGS * len(found)):
                own = _literal_words(line)
                if all(left[word] > 1 for word in own):
                    left.subtract(own)
                    chosen.add(line)
        kept[name] = frozenset(chosen)
    return kept


def _literal_words(line: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", re.sub(r"{\w+}", " ", line).lower()))


def is_held_out(key: str, values: object) -> bool:
    """Whether a combination of values belongs to evaluation. `repr(values)` must say all of it.

    Of what ends in on or off (a bool) one is held out at most: training knows every thing and room.
    """
    if isinstance(values, tuple) and isinstance(values[-1], bool):
        number = int(_hash(f"{key}|{values[:-1]!r}")[:8], 16)
        return number < 2 * HELD_OUT_VALUES * 2**32 and values[-1] == bool(number % 2)
    return int(_hash(f"{key}|{values!r}")[:8], 16) < HELD_OUT_VALUES * 2**32


def expand(template: str) -> Iterator[str]:
    """Every text of a template's choices; its slots stay."""
    parts = _CHOICE.split(template)  # text, choices, text, ...
    options = [part.split("|") if n % 2 else [part] for n, part in enumerate(parts)]
    for chosen in itertools.product(*options):
        yield _tidy("".join(chosen))


def choose(template: str, random: Random) -> str:
    return _tidy(_CHOICE.sub(lambda match: random.choice(match[1].split("|")), template))


def slots(template: str) -> set[str]:
    return set(re.findall(r"{(\w+)}", template))


def sentence(text: str) -> str:
    """A capital at the beginning, a full stop at the end where no other sign is."""
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".?!" else text + "."


def _tidy(text: str) -> str:
    return re.sub(r" ([,.?!])", r"\1", re.sub(r"\s+", " ", text)).strip(" ,")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
