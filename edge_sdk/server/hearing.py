"""What a session hears: the input buffer, turn detection, and the items that come of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_sdk.audio import StreamResampler
from edge_sdk.server import sound
from edge_sdk.server.buffer import InputBuffer
from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.items import Item, new_id
from edge_sdk.server.listening import Heard, Listening, Paused, Started, Stopped
from edge_sdk.server.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.server.session import Session


class Hearing:
    """Belongs to one session, and its thread."""

    def __init__(self, session: Session, settings: Settings, most_s: float) -> None:
        self._session = session
        self._buffer = InputBuffer(most_s)
        self._listening: Listening | None = None
        self._total = 0  # samples at the model's rate since the session began
        self._item_id = new_id("item")  # of the item that the buffer's sound will be
        self._form = ""
        self.set(settings)

    def set(self, settings: Settings) -> None:
        """The session's settings changed."""
        if settings.input_format != self._form:
            self._form = settings.input_format
            self._resampler = self._new_resampler()
        detection = settings.turn_detection
        if detection is None:
            self._listening = None
        elif self._listening is None or self._listening.detection != detection:
            self._listening = Listening(detection, self._total)

    # -- the protocol's events

    def append(self, audio: str) -> None:
        pcm = sound.decode(audio, self._form)
        self._buffer.check_room(len(pcm) * sound.MODEL_RATE_HZ // sound.rate_of(self._form))
        self._session.service.metrics.audio_in.inc(len(pcm) / sound.rate_of(self._form))
        self._take(self._resampler.feed(pcm))

    def commit(self) -> None:
        """By the client: also with turn detection, in the middle of what is said."""
        self._take(self._resampler.finish())
        self._resampler = self._new_resampler()
        if self._listening:
            self._listening.reset()
        self._commit()

    def clear(self) -> None:
        self._buffer.clear()
        self._resampler = self._new_resampler()
        if self._listening:
            self._listening.reset()

    # -- for the session

    def hear(self) -> None:
        """The chat is free again: go on with what came meanwhile."""
        self._buffer.hear(self._session.chat)

    def step_aside(self) -> None:
        """Something else needs the chat, or the history changes."""
        self._buffer.step_aside()

    def close(self) -> None:
        self._buffer.clear()
        self._listening = None

    # -- inside

    def _new_resampler(self) -> StreamResampler:
        return StreamResampler(sound.rate_of(self._form), sound.MODEL_RATE_HZ)

    def _take(self, pcm: sound.Array) -> None:
        if not len(pcm):
            return
        self._total += len(pcm)
        if self._listening is None:
            self._buffer.append(pcm, self._session.chat)
            return
        for found in self._listening.feed(pcm):
            match found:
                case Started():
                    self._started(found)
                case Heard():
                    self._buffer.append(found.pcm, self._session.chat)
                case Paused():
                    self._buffer.prepare()
                case Stopped():
                    self._stopped(found)

    def _started(self, found: Started) -> None:
        self._buffer.clear()
        session = self._session
        session.send({"type": "input_audio_buffer.speech_started", "audio_start_ms": found.at_ms,
                      "item_id": self._item_id})  # fmt: skip
        if self._listening and self._listening.detection.interrupt_response:
            session.cancel("turn_detected")

    def _stopped(self, found: Stopped) -> None:
        session = self._session
        session.send({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": found.at_ms,
                      "item_id": self._item_id})  # fmt: skip
        try:
            self._commit()
        except ProtocolError:
            self._buffer.clear()
            raise
        if self._listening and self._listening.detection.create_response:
            session.respond(endpoint_ms=found.silence_ms)

    def _commit(self) -> None:
        session = self._session
        clip = self._buffer.take(session.any_chat())
        item_id, self._item_id = self._item_id, new_id("item")
        session.send({"type": "input_audio_buffer.committed", "previous_item_id": session.last_item_id,
                      "item_id": item_id})  # fmt: skip
        session.put(Item(item_id, "user", clip=clip))
        if session.transcription_wanted:
            error = {"type": "invalid_request_error", "code": "transcription_not_supported", "param": None,
                     "message": "This model hears sound directly and makes no transcript of it."}  # fmt: skip
            session.send({"type": "conversation.item.input_audio_transcription.failed", "item_id": item_id,
                          "content_index": 0, "error": error})  # fmt: skip
