"""A user's turn that is still being spoken: encodes and prefills while the sound arrives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from edge_sdk.audio import MIN_MS, StreamResampler
from edge_sdk.checks import check_text
from edge_sdk.clip import ClipEncoder
from edge_sdk.context import Context
from edge_sdk.conversation import Conversation
from edge_sdk.conversation import Turn as HistoryTurn
from edge_sdk.errors import AudioError, ContextFullError, Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.prompt import Clip
from edge_sdk.stream import ReplyStream

Ask = Callable[[], HistoryTurn]
Answer = Callable[[Ask, float, float, GenerationConfig | None], ReplyStream]  # when it was asked, encoded for so long


class Turn:
    """Made by `Chat.begin_turn`. Feed it sound, then `finish` for the reply, or `cancel`.

    The chat is busy until then. The result is the same as if all of it had been sent at once. Any thread may call any
    of its methods; they wait for each other.
    """

    def __init__(
        self,
        clip: ClipEncoder,
        resampler: StreamResampler,
        conversation: Conversation,
        context: Context,
        answer: Answer,
        put: Callable[[HistoryTurn], None],
        release: Callable[[], None],
        check_word: Callable[[], None],
    ) -> None:
        self._encoder, self._resampler = clip, resampler
        self._conversation, self._context = conversation, context
        self._answer, self._put, self._release, self._check_word = answer, put, release, check_word
        self._lock = threading.RLock()  # a signal's handler may cancel while its own thread feeds
        self._open, self._cancelled = True, False
        self._fed = 0  # samples at the turn's own rate
        self._clip: Clip | None = None  # once the sound is complete
        self._prepared: Clip | None = None  # as it is if no more sound comes
        self._encode_s = 0.0

    @property
    def seconds(self) -> float:
        """Sound fed so far."""
        return self._fed / self._resampler.sample_rate

    def feed(self, pcm: Any) -> None:
        """Append sound: float32 or float64 in [-1, 1], or int16; [n] or [n, channels]; any n, at the turn's rate.

        Prefills what stands before the question, encodes every 2 s window that is complete, and prefills both caches
        with it, in the caller's thread.

        Raises:
            AudioError: the piece cannot be used; nothing of it is kept, and the turn goes on.
        """
        with self._lock:
            self._check_open()
            if self._clip is not None:
                raise Error("the sound of this turn is complete: finish or cancel it")
            first, ready = not self._fed, self._resampler.feed(pcm)
            self._fed += len(pcm)
            self._prepared = None if len(pcm) else self._prepared
            began = time.perf_counter()
            changed = self._encoder.feed(ready)
            self._encode_s += time.perf_counter() - began
            if changed or first:  # what stands before the question can be prefilled with its first sound
                self._prefill(self._encoder.clip())

    @property
    def can_prepare(self) -> bool:
        """The turn's rate is the model's own, as `prepare` needs it."""
        return self._resampler.sample_rate == self._resampler.to_rate

    def prepare(self) -> None:
        """The sound may be complete: encode and prefill all of it now, in the caller's thread, so that a `finish` right
        behind only has to decode. More can be fed all the same; then the caches go back to where they were.

        Raises:
            Error: the turn's rate is not the model's: the end of a sound that is still being resampled is not known.
        """
        with self._lock:
            self._check_open()
            if not self.can_prepare:
                raise Error(
                    f"prepare() needs sound at the model's own rate of {self._resampler.to_rate} Hz, this turn is at "
                    f"{self._resampler.sample_rate} Hz: resample before (edge_sdk.audio.StreamResampler)"
                )
            if self._clip is not None or self._prepared is not None or self._fed < self._least:
                return
            began = time.perf_counter()
            self._prepared = self._encoder.copy().finish()
            self._encode_s += time.perf_counter() - began
            self._prefill(self._prepared, complete=True)

    def finish(self, text: str | None = None, *, generation: GenerationConfig | None = None) -> ReplyStream:
        """The question is complete: encode and prefill what is left, and answer.

        Args:
            text: added after the sound, or the whole question if there was none.
            generation: settings for this reply alone.
        Raises:
            AudioError: less than 40 ms of sound, or neither sound nor text. The turn stays open.
            ContextFullError: the turn does not fit. The turn stays open; `cancel` ends it.
        """
        asked_at = time.perf_counter()
        text = "" if text is None else check_text("text", text)

        def ask() -> HistoryTurn:
            if self._fed:
                self._complete()
            elif not text:
                raise AudioError("nothing was fed and no text given: there is nothing to answer")
            return HistoryTurn("user", text=text, clip=self._clip)

        with self._lock:
            self._check_open()
            try:
                self._open = False
                return self._answer(ask, asked_at, self._encode_s, generation)
            except BaseException:
                self._open = True
                raise

    def add(self) -> None:
        """The sound is complete: put it into the history, to be answered later by `Chat.send` or `stream` with neither
        audio nor text. What was prefilled of it stays.

        Raises:
            AudioError, ContextFullError: as for `finish`. The turn stays open.
        """
        with self._lock:
            self._check_open()
            self._complete()
            self._put(HistoryTurn("user", clip=self._clip))
            self._open = False
            self._release()

    def cancel(self) -> None:
        """Forget the turn. What was prefilled of it is dropped by the next one. Safe to call again, from any thread."""
        self._cancelled = True  # a prefill in another thread ends at its next piece
        with self._lock:
            if self._open:
                self._open = False
                self._release()

    def _complete(self) -> None:
        if self._clip is not None:
            return
        if self._fed < self._least:
            raise AudioError(f"only {self._fed} samples were fed; at least {self._least} ({MIN_MS} ms) are needed")
        if self._prepared is not None:
            self._clip = self._prepared
            return
        self._encoder.feed(self._resampler.finish())
        self._clip = self._encoder.finish()

    @property
    def _least(self) -> int:
        return -(-MIN_MS * self._resampler.sample_rate // 1000)  # rounded up: resampled it must still be enough

    def _prefill(self, clip: Clip, *, complete: bool = False) -> None:
        turn = HistoryTurn("user", clip=clip)
        try:
            _, prompt = self._conversation.fit([*self._conversation.turns, turn])
        except ContextFullError:
            return  # said at `finish`, where it can be answered; until then feeding goes on
        end = len(prompt) if complete else prompt.clip_ends[-1]
        self._context.prefill_early(prompt.head(end), lambda: self._cancelled)

    def _check_open(self) -> None:
        if not self._open:
            raise Error("this turn is over; begin another with Chat.begin_turn")
        self._check_word()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.cancel()
