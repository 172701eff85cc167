"""What the assistant tells a user interface: frozen dataclasses, in the order of what happens.

`at_s` is the link's clock, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_sdk.events import Reply
from edge_sdk.turn_timings import TurnTimings


@dataclass(frozen=True)
class Sleeping:
    """Nothing is listened for but the wake word."""

    at_s: float


@dataclass(frozen=True)
class Listening:
    """Nobody speaks; the user may begin."""

    at_s: float


@dataclass(frozen=True)
class Hearing:
    """The user speaks, since `began_s`. `turn` counts the questions from 1."""

    at_s: float
    turn: int
    began_s: float


@dataclass(frozen=True)
class Pausing:
    """The user is silent; it may be the end, and the answer is prepared."""

    at_s: float
    turn: int


@dataclass(frozen=True)
class Thinking:
    """The user has finished, after `speech_s` of sound; the answer is being made."""

    at_s: float
    turn: int
    speech_s: float


@dataclass(frozen=True)
class Ignored:
    """What was heard was too short for a question."""

    at_s: float
    turn: int


@dataclass(frozen=True)
class Said:
    """New text of the answer; its sound follows, or was made with it."""

    at_s: float
    turn: int
    text: str


@dataclass(frozen=True)
class Calling:
    """The model calls a function, which runs now if it is a callable."""

    at_s: float
    turn: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Speaking:
    """The first of the answer left the speaker, `response_ms` after the user's last word."""

    at_s: float
    turn: int
    response_ms: float


@dataclass(frozen=True)
class Interrupted:
    """The user spoke over the answer (or pressed the key): it is silent, and the history keeps what was played.

    `detected_s` is when the sound that decided it was taken; `at_s - detected_s` is how long stopping took.
    """

    at_s: float
    turn: int
    played_ms: float
    detected_s: float


@dataclass(frozen=True, eq=False)  # a reply has arrays
class Answered:
    """A turn is over: played to its end, or interrupted. `reply` is as the chat made it."""

    at_s: float
    turn: int
    reply: Reply
    timings: TurnTimings


@dataclass(frozen=True)
class Failed:
    """A question could not be answered, and why; the assistant goes on listening."""

    at_s: float
    turn: int
    why: str


@dataclass(frozen=True)
class Level:
    """Ten times a second: level of what is heard (dBFS), how likely it is speech, whether the assistant is played."""

    at_s: float
    level_db: float
    speech: float
    playing: bool


AssistantEvent = (
    Sleeping | Listening | Hearing | Pausing | Thinking | Ignored | Said | Calling | Speaking | Interrupted
    | Answered | Failed | Level
)  # fmt: skip
