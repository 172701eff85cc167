"""The voice assistant: listens, has the chat answer, speaks, and lets itself be interrupted.

Two threads: `run` reads the link, finds utterances and interruptions, and never waits for the model; the thinker owns
the chat. Every time is the link's, so the whole works as well on a simulated room's clock.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.assistant_events import AssistantEvent, Level, Listening, Sleeping
from edge_sdk.audio import StreamResampler
from edge_sdk.audio_link import AudioLink, Heard
from edge_sdk.barge_in import BargeInConfig, BargeInGuard, Demand
from edge_sdk.checks import check_number, check_path
from edge_sdk.dialogue import Dialogue
from edge_sdk.endpoint_config import EndpointConfig
from edge_sdk.endpointing import Detector, Endpointer
from edge_sdk.errors import Error
from edge_sdk.files import check_place
from edge_sdk.keyboard import ends_with
from edge_sdk.recorder import Recorder
from edge_sdk.runtime import Array
from edge_sdk.thinker import Thinker
from edge_sdk.trace import Trace
from edge_sdk.vad import SAMPLE_RATE
from edge_sdk.wake_word import WakeWord

if TYPE_CHECKING:
    from edge_sdk.chat import Chat

READ_TIMEOUT_S = 0.1
LEVEL_EVERY_S = 0.1
SILENT_DB = -120.0

log = logging.getLogger("edge_sdk.assistant")


class Assistant:
    """A conversation by voice. `run` it in one thread; `stop`, `press`, `release` and `interrupt` come from any.

    Args:
        chat: answers; nobody else may ask it meanwhile.
        link: microphone and speaker. The caller closes it.
        on_event: gets every `AssistantEvent`, one at a time, from two threads; it has to return soon. What it raises
            ends `run`.
        endpoint: when the user has begun and finished; its `mode` chooses between listening always and push to talk.
        barge_in: when the user may interrupt.
        detector: finds speech instead of the package's own.
        wake_word: until it is said nothing is listened to; after `awake_s` without a word it is needed again.
        session: the conversation is saved to this file after every turn (`Chat.restore` takes it up).
        record: keep the sound of every turn in this folder. Without it no sound is kept.
        trace: write a trace for Chrome's or Perfetto's viewer to this file.

    Raises:
        Error, RuntimeUnavailableError: what cannot be used, and what to do.
    """

    def __init__(
        self,
        chat: Chat,
        link: AudioLink,
        *,
        on_event: Callable[[AssistantEvent], None] | None = None,
        endpoint: EndpointConfig | None = None,
        barge_in: BargeInConfig | None = None,
        detector: Detector | None = None,
        wake_word: WakeWord | None = None,
        awake_s: float = 8.0,
        session: str | os.PathLike[str] | None = None,
        record: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        self._link, self._on_event = link, on_event
        self._endpointer = Endpointer(endpoint, detector)
        self._barge_in = barge_in or BargeInConfig()
        self._guard = BargeInGuard(self._barge_in)
        self._wake_word, self._awake_s = wake_word, check_number("awake_s", awake_s, 0.1)
        place = None if session is None else check_path("the session's file", session)
        if place is not None:
            check_place(place)
        recorder = None if record is None else Recorder(record, SAMPLE_RATE)
        self._trace = Trace(trace)
        self._thinker = Thinker(chat, link, self._emit, self._trace, place)
        self._dialogue = Dialogue(link, self._endpointer, self._thinker, self._emit, self._trace, recorder)
        self._emitting = threading.RLock()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._keys: deque[str] = deque()  # pressed and not looked at yet
        self._awake_until_s = -math.inf
        self._state: type[AssistantEvent] | None = None  # Listening or Sleeping, while nobody speaks
        self._next_level_s = -math.inf

    # -- from any thread

    def stop(self) -> None:
        """Have `run` return soon. What is being said is cut."""
        self._stopping.set()

    def press(self) -> None:
        """The key of push to talk goes down: an answer is interrupted, an utterance begins. In any mode."""
        self._keys.append("press")

    def release(self) -> None:
        """The key goes up: the utterance is over."""
        self._keys.append("release")

    def interrupt(self) -> None:
        """End an answer (a button, say). Nothing is asked."""
        self._keys.append("interrupt")

    @property
    def busy(self) -> bool:
        """The model is at work: a simulated clock must not run ahead of it."""
        return self._thinker.busy

    # -- the loop

    def run(self) -> None:
        """Listen and answer until `stop`, or Ctrl-C, which is raised when everything has ended. Once only.

        Raises:
            DeviceError: there is no device, or it went away and the link does not wait for it.
            Error: the chat was closed, or this assistant has run.
        """
        if self._thinker.started:
            raise Error("this Assistant has run; make another for the same chat")
        with ends_with(self.stop):
            try:
                self._link.start()
                self._talk()
            finally:
                self._trace.close()
            if failure := self._failure or self._thinker.failure:
                raise failure

    def _talk(self) -> None:
        resampler = StreamResampler(self._link.sample_rate, SAMPLE_RATE, "the microphone")
        self._thinker.start()
        try:
            while not self._stopping.is_set() and self._thinker.failure is None:
                self._show_state()
                heard = self._link.read(READ_TIMEOUT_S)
                if heard is not None:
                    self._take(heard, resampler.feed(heard.pcm))
                self._dialogue.follow()
        finally:
            try:
                self._dialogue.drop()
            finally:
                self._thinker.end()
            self._dialogue.follow()

    def _take(self, heard: Heard, pcm: Array) -> None:
        read_s = self._link.now()
        self._show_level(heard, pcm)
        while self._keys:
            self._key(self._keys.popleft(), heard.at_s)
        if self._asleep(pcm, heard.at_s):
            return
        answering = self._dialogue.answering
        need = self._guard.demand(heard, answering=answering, suspected=self._endpointer.suspecting)
        closed = not self._barge_in.enabled and not self._endpointer.speaking
        if closed and (answering or heard.playing):
            pcm, need = np.zeros_like(pcm), Demand()  # half duplex; positions go on
        events = self._endpointer.feed(pcm, floor_db=need.floor_db, min_speech_ms=need.min_speech_ms)
        self._dialogue.heard_until(heard.at_s, read_s)
        for event in events:
            self._dialogue.react(event)
        self._dialogue.feed()

    def _key(self, key: str, at_s: float) -> None:
        if key == "interrupt":
            self._dialogue.interrupt(at_s)
            return
        self._awake_until_s = at_s + self._awake_s
        for event in self._endpointer.press() if key == "press" else self._endpointer.release():
            self._dialogue.react(event)

    def _asleep(self, pcm: Array, at_s: float) -> bool:
        """Whether nothing counts but the wake word."""
        if self._wake_word is None or self._endpointer.config.mode == "push_to_talk":
            return False
        if not self._dialogue.idle:
            self._awake_until_s = at_s + self._awake_s
        if at_s < self._awake_until_s:
            return False
        if self._wake_word.feed(pcm):
            self._wake_word.reset()
            self._endpointer.reset()
            self._awake_until_s = at_s + self._awake_s
        return True

    # -- what is told

    def _show_state(self) -> None:
        if not self._dialogue.idle:
            self._state = None
            return
        now = self._link.now()
        asleep = self._wake_word is not None and now >= self._awake_until_s
        state = Sleeping if asleep else Listening
        if state is not self._state:
            self._state = state
            self._emit(state(now))

    def _show_level(self, heard: Heard, pcm: Array) -> None:
        if heard.at_s < self._next_level_s or not len(pcm):
            return
        self._next_level_s = heard.at_s + LEVEL_EVERY_S
        power = float(np.mean(np.square(pcm, dtype=np.float64)))
        level_db = max(10 * math.log10(power), SILENT_DB) if power > 0 else SILENT_DB
        self._trace.count("microphone", heard.at_s, level_db=round(level_db, 1))
        self._emit(Level(heard.at_s, level_db, self._endpointer.probability, heard.playing))

    def _emit(self, event: AssistantEvent) -> None:
        if self._on_event is None:
            return
        with self._emitting:
            try:
                self._on_event(event)
            except BaseException as e:  # raised by `run`
                self._failure = self._failure or e
                self._stopping.set()
