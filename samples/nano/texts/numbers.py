"""Numbers and times as they are said, and back: a checker compares values, a speech synthesizer reads words."""

from __future__ import annotations

import re
from collections.abc import Iterator

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = (("million", 1_000_000), ("thousand", 1_000), ("hundred", 100))
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}
_WORDS = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*|,")


def speak(value: float, decimals: int = 0) -> str:
    """21 -> "twenty one"; -3.5 with decimals=1 -> "minus three point five". Zeros at the end are not said."""
    digits = f"{abs(value):.{decimals}f}"
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    said = _whole(int(whole)) + (" point " + " ".join(ONES[int(d)] for d in fraction) if fraction else "")
    return "minus " + said if value < 0 and digits.strip("0.") else said


def _whole(n: int) -> str:
    for name, size in _SCALES:
        if n >= size:
            rest = f" {_whole(n % size)}" if n % size else ""
            return f"{_whole(n // size)} {name}{rest}"
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")


def ordinal(n: int) -> str:
    """21 -> "twenty first"."""
    *head, last = _whole(n).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = last.removesuffix("y") + "ie" * last.endswith("y") + "th"
    return " ".join([*head, last])


def clock(hour: int, minute: int) -> str:
    """Time of the day on a face of twelve hours: (14, 5) -> "two oh five", (7, 0) -> "seven o'clock"."""
    said = ONES[hour % 12 or 12]
    if minute == 0:
        return f"{said} o'clock"
    return f"{said} oh {ONES[minute]}" if minute < 10 else f"{said} {_whole(minute)}"


def part_of_day(hour: int) -> str:
    if hour < 12:
        return "in the morning"
    return "in the afternoon" if hour < 18 else "in the evening"


def count(n: int, noun: str) -> str:
    """(1, "minute") -> "one minute", (5, "minute") -> "five minutes"."""
    plural = {"foot": "feet", "inch": "inches"}.get(noun, noun + "s")
    return f"{speak(n)} {noun if n == 1 else plural}"


def spoken_list(words: list[str]) -> str:
    """["milk", "eggs", "tea"] -> "milk, eggs and tea"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def canonical(text: str) -> list[str]:
    """Words in lower case without punctuation, numbers as figures whichever way they were written:
    "It's twenty-one point five." -> ["it's", "21.5"]. "and" inside a number is no word, "minus" before one its sign."""
    words = _WORDS.findall(text.lower().replace("’", "'").replace("°", " degrees ").replace("-", _sign(text)))
    return [word for word in _numbers(words) if word != ","]  # it parts numbers: "twenty, five" are two


def _sign(text: str) -> str:
    """A dash is a sign where a figure follows it ("-3"), else it parts words ("twenty-one")."""
    return " minus " if re.search(r"(?<!\w)-\d", text) else " "


def _numbers(words: list[str]) -> Iterator[str]:
    at = 0
    while at < len(words):
        negative = words[at] == "minus" and at + 1 < len(words) and _read(words, at + 1)[1] > at + 1
        value, end = _read(words, at + negative)
        if end == at + negative:
            yield words[at]
            at += 1
            continue
        fraction, end = _fraction(words, end)
        yield "-" * (negative and value + fraction != "0") + value + fraction
        at = end


def _read(words: list[str], at: int) -> tuple[str, int]:
    """(the whole number that begins there, where it ends); it ends at once if none does."""
    if words[at][0].isdigit():
        whole, _, fraction = words[at].partition(".")
        fraction = fraction.rstrip("0")
        return str(int(whole)) + ("." + fraction if fraction else ""), at + 1
    total, part, end = 0, -1, at  # part: what stands below the next scale, -1 nothing yet
    while end < len(words):
        word = words[end]
        free = part < 0 or (part > 0 and part % 100 == 0) or (part == 0 and total > 0)  # for a number below a hundred
        if word == "and" and part >= 0 and words[end - 1] in ("hundred", "thousand") and _is_small(words, end + 1):
            pass
        elif word in ONES and (free or (part % 100 >= 20 and part % 10 == 0 and ONES.index(word) < 10)):
            if word == "zero" and end > at:
                break
            part = max(part, 0) + ONES.index(word)
        elif word in TENS[2:] and free:
            part = max(part, 0) + 10 * TENS.index(word)
        elif word == "hundred" and 0 < part < 100:
            part *= 100
        elif word in ("thousand", "million") and part > 0:
            total, part = total + part * dict(_SCALES)[word], 0
        else:
            break
        end += 1
    return str(total + max(part, 0)), end


def _is_small(words: list[str], at: int) -> bool:
    return at < len(words) and (words[at] in ONES[1:] or words[at] in TENS[2:])


def _fraction(words: list[str], at: int) -> tuple[str, int]:
    """(".5", where it ends) of "point five"; ("", at) without one."""
    if at + 1 >= len(words) or words[at] != "point" or words[at + 1] not in ONES[:10]:
        return "", at
    end = at + 1
    digits = ""
    while end < len(words) and words[end] in ONES[:10]:
        digits += str(ONES.index(words[end]))
        end += 1
    digits = digits.rstrip("0")
    return "." + digits if digits else "", end
