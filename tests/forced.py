"""Replies whose text is given: the decode loop, the parser and the history are the real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_sdk import reply as module
from edge_sdk.chat import Chat
from edge_sdk.generation import Chooser


def make_answers(monkeypatch: pytest.MonkeyPatch, chat: Chat, answers: list[str]) -> None:
    """Have the model 'generate' given texts, one a round."""
    waiting = iter(answers)

    class Forced(Chooser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            text = next(waiting)
            self.forced = [*chat._tokenizer.encode(text), chat._model.text_ids.eos[0]]

        def text_id(self, output: Any, step: int) -> int:
            return int(self.forced[step])

    monkeypatch.setattr(module, "Chooser", Forced)


def make_spoken_answers(monkeypatch: pytest.MonkeyPatch, chat: Chat, answers: list[str]) -> None:
    """The same with sound: a group of given speech ids for every text id (200 ms each), until the text ends."""
    waiting = iter(answers)
    size = chat.group_size

    class Forced(Chooser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            ids = chat._model.text_ids
            # Nothing is heard of the step that says audio_bos; the reply ends with the text.
            self.forced = [ids.audio_bos, *chat._tokenizer.encode(next(waiting)), ids.eos[0]]

        def text_id(self, output: Any, step: int) -> int:
            return int(self.forced[step])

        def forced_speech(self, step: int) -> Any:
            return np.arange(size * step, size * (step + 1)) % 100

    monkeypatch.setattr(module, "Chooser", Forced)
