"""One question and its answer, as the thread that hears and the thread that thinks both see it."""

from __future__ import annotations

import enum
import threading

import numpy as np

from edge_sdk.audio_link import AudioLink
from edge_sdk.events import AudioChunk, Reply
from edge_sdk.runtime import Array
from edge_sdk.stream import ReplyStream
from edge_sdk.turn_timings import Marks


class Work(enum.Enum):
    """What the thinking thread is to do next."""

    FEED = enum.auto()
    PREPARE = enum.auto()
    ASK = enum.auto()
    DROP = enum.auto()


class Exchange:
    """From the user's first sound until the answer was played or interrupted.

    The hearing side never waits: sound gathers here, and a `pause` that more sound follows is forgotten.
    """

    def __init__(self, turn: int, link: AudioLink) -> None:
        self.turn, self.marks = turn, Marks()
        self.kept: list[Array] = []  # the question's sound, where it is recorded
        self._link = link
        self._changed = threading.Condition()
        self._sound: list[Array] = []
        self._pause = False
        self._end: Work | None = None
        self._waiting = False
        self._stream: ReplyStream | None = None
        self._playing = False
        self._played_ms: float | None = None  # where it was interrupted
        self.reply: Reply | None = None
        self.finished = False  # by the thinking side, well or not

    # -- the hearing side

    def feed(self, pcm: Array) -> None:
        """More of the question, float32 [n] at 16 kHz."""
        if len(pcm):
            with self._changed:
                self._sound.append(pcm)
                self._pause = False
                self._changed.notify_all()

    def pause(self) -> None:
        """What was fed may be all."""
        with self._changed:
            self._pause = True
            self._changed.notify_all()

    def ask(self) -> None:
        """It is all."""
        self._close(Work.ASK)

    def drop(self) -> None:
        """It was no question."""
        self._close(Work.DROP)

    def interrupt(self) -> float:
        """The answer ends: silence now, generation within a step. Returns what was played of it, ms."""
        with self._changed:
            if self._played_ms is None:
                self._played_ms = self._link.flush() if self._playing else 0.0
            stream, played_ms = self._stream, self._played_ms
        if stream is not None:
            stream.interrupt(played_ms)
        return played_ms

    @property
    def asked(self) -> bool:
        return self._end is Work.ASK

    @property
    def interrupted(self) -> bool:
        return self._played_ms is not None

    @property
    def played_ms(self) -> float:
        """Of the answer's sound, what has left the speaker."""
        if self._played_ms is not None:
            return self._played_ms
        return self._link.played_ms if self._playing else 0.0

    @property
    def over(self) -> bool:
        """Nothing of it will be made or played any more."""
        silent = self.interrupted or not self._playing or self._link.pending_ms <= 0
        return self.finished and silent

    @property
    def waiting(self) -> bool:
        """The thinking side has nothing to do until the hearing side says more."""
        with self._changed:
            return self._waiting and not self._ready()

    # -- the thinking side

    def work(self) -> tuple[Work, Array | None]:
        """What is to be done next, waiting for it; with FEED all sound that gathered, float32 [n]."""
        with self._changed:
            self._waiting = True
            while not self._ready():
                self._changed.wait()
            self._waiting = False
            if self._end is Work.DROP:
                return Work.DROP, None
            if self._sound:
                sound, self._sound = np.concatenate(self._sound), []
                return Work.FEED, sound
            if self._end is not None:
                return self._end, None
            self._pause = False
            return Work.PREPARE, None

    def attach(self, stream: ReplyStream) -> None:
        """The answer is on its way; an interruption that came before reaches it now."""
        with self._changed:
            self._stream, played_ms = stream, self._played_ms
        if played_ms is not None:
            stream.interrupt(played_ms)

    def play(self, chunk: AudioChunk) -> bool:
        """Give sound to the speaker, unless it was interrupted. Returns whether it was the first."""
        with self._changed:
            if self.interrupted:
                return False
            first, self._playing = not self._playing, True
            if first:
                self._link.begin_reply()
            self._link.play(chunk.pcm, chunk.sample_rate)
            return first

    def finish(self, reply: Reply | None) -> None:
        """No more of it comes."""
        with self._changed:
            self.reply, self.finished = reply, True
            if self._playing and not self.interrupted:
                self._link.end_reply()

    def _close(self, end: Work) -> None:
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def _ready(self) -> bool:
        return bool(self._sound or self._pause or self._end)
