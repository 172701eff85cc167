"""Wake words: what the assistant asks of a detector, and one by a kept library (extra `wake`)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edge_sdk.errors import Error
from edge_sdk.runtime import Array


class WakeWord(Protocol):
    """Listens while the assistant sleeps. Write one around any library: two methods."""

    def feed(self, pcm: Array) -> bool:
        """The next sound, float32 mono [n] in [-1, 1] at 16 kHz, any n. Returns whether the word was said."""

    def reset(self) -> None:
        """Forget what was heard: the assistant was awake meanwhile."""


class MicroWakeWord:
    """microWakeWord's small networks (package `pymicro-wakeword`): "hey_jarvis", "alexa", "okay_nabu" and others."""

    def __init__(self, name: str = "hey_jarvis") -> None:
        """Raises Error if the package is not installed or has no such word; says which there are."""
        try:
            import pymicro_wakeword as micro
        except (ImportError, OSError) as e:
            raise Error(f"pymicro-wakeword cannot be used ({e}): pip install 'edge_sdk[wake]'") from e
        models = {model.value: model for model in micro.Model}
        if name not in models:
            raise Error(f"there is no wake word {name!r}; there is {', '.join(models)}")
        self._features: Any = micro.MicroWakeWordFeatures()
        self._word: Any = micro.MicroWakeWord.from_builtin(models[name])

    def feed(self, pcm: Array) -> bool:
        """As `WakeWord.feed`."""
        samples = np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2")
        said = False
        for features in self._features.process_streaming(samples.tobytes()):
            said = bool(self._word.process_streaming(features)) or said
        return said

    def reset(self) -> None:
        """As `WakeWord.reset`."""
        self._features.reset()
        self._word.reset()
