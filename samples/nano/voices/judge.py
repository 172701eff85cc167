"""An ear that is not ours: Whisper tiny.en writes down what it hears, and word errors are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from edge_sdk.errors import Error
from edge_sdk.runtime import Array, no_telemetry
from samples.nano.texts.numbers import canonical, ordinal
from samples.nano.voices.packages import WHISPER_TINY_EN, model_file
from samples.nano.voices.rooms import RATE

_UNITS = {"km": "kilometers", "cm": "centimeters", "kg": "kilograms", "%": "percent"}
_FORMS = {"okay": "ok", "grey": "gray", "favourite": "favorite", "litres": "liters", "metres": "meters"}


@dataclass(frozen=True)
class Errors:
    """Word errors: substituted, left out and put in, of so many words."""

    errors: int
    words: int

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


class Judge:
    """Whisper tiny.en, greedy, in float32: the same sound is read the same way every time."""

    def __init__(self, threads: int = 1) -> None:
        path = model_file(WHISPER_TINY_EN)
        no_telemetry()  # faster-whisper imports onnxruntime
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as e:
            raise Error("the package faster-whisper is missing: python -m pip install 'faster-whisper>=1.1'") from e
        self._model = WhisperModel(str(path.parent), device="cpu", compute_type="float32", cpu_threads=threads)

    def hear(self, pcm: Array, rate: int) -> str:
        """Text of speech, float32 [n] in [-1, 1]."""
        sound = pcm if rate == RATE else soxr.resample(pcm, rate, RATE)
        segments, _ = self._model.transcribe(
            sound.astype(np.float32), language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


def word_errors(text: str, heard: str) -> Errors:
    """Compared as words in lower case, numbers by their digits: "seven oh five" is 7:05, "twenty one point five" 21.5,
    "three fifty" 350 (nobody could tell which was meant)."""
    wanted, found = _words(text), _words(heard)
    return Errors(_distance(wanted, found), len(wanted))


def _words(text: str) -> list[str]:
    text = re.sub(r"(\d)[.:](\d\d)(?!\d)", r"\1 \2", text.replace(":00", ""))
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda match: ordinal(int(match[1])), text)
    text = re.sub(r"\b([ap])\.?\s?m\b\.?", r"\1m", text, flags=re.IGNORECASE)
    for unit, name in _UNITS.items():
        text = re.sub(rf"(?<=[\d ]){unit}(?!\w)", f" {name}", text)
    return list(_joined([_FORMS.get(word, word) for word in canonical(text)]))


def _joined(words: Sequence[str]) -> Iterator[str]:
    """Numbers that follow each other as one string of digits, without the "oh" and "o'clock" that times have."""
    digits = ""
    for word in words:
        if word[-1].isdigit():
            digits += word.replace(".", "")
        elif not (digits and word in ("oh", "o'clock")):
            yield from filter(None, (digits, word))
            digits = ""
    yield from filter(None, (digits,))


def _distance(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Levenshtein's, by rows."""
    row = list(range(len(found) + 1))
    for n, word in enumerate(wanted, 1):
        before, row[0] = row[0], n
        for k, other in enumerate(found, 1):
            before, row[k] = row[k], min(row[k] + 1, row[k - 1] + 1, before + (word != other))
    return row[-1]
