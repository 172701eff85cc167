"""The input buffer: sound that belongs to no item yet, heard by the model while it arrives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_sdk.chat import Chat
from edge_sdk.errors import ContextFullError
from edge_sdk.prompt import Clip
from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.sound import MODEL_RATE_HZ, Array
from edge_sdk.turn import Turn

MIN_MS = 100  # as the protocol has it


class InputBuffer:
    """Sound at the model's rate. While the chat is free a turn is open on it, which encodes and prefills; a turn that
    has to make way for something else is begun again with the same sound.
    """

    def __init__(self, most_s: float) -> None:
        self._most = int(most_s * MODEL_RATE_HZ)
        self._pieces: list[Array] = []
        self._samples = 0
        self._turn: Turn | None = None

    @property
    def empty(self) -> bool:
        return not self._samples

    @property
    def seconds(self) -> float:
        return self._samples / MODEL_RATE_HZ

    def check_room(self, samples: int) -> None:
        if self._samples + samples > self._most:
            raise ProtocolError(
                f"The input buffer holds at most {self._most / MODEL_RATE_HZ:g} s of sound: commit or clear it.",
                "input_audio_buffer_full", "audio",
            )  # fmt: skip

    def append(self, pcm: Array, chat: Callable[[], Chat | None]) -> None:
        """`chat` gives the one to hear it, its history up to date, or None while it speaks."""
        self._pieces.append(pcm)
        self._samples += len(pcm)
        if self._turn:
            self._turn.feed(pcm)
        else:
            self.hear(chat)

    def hear(self, chat: Callable[[], Chat | None]) -> None:
        """Open a turn on what is here, if there is something and the chat is free."""
        if self._samples and self._turn is None and (free := chat()) is not None:
            self._turn = free.begin_turn(MODEL_RATE_HZ)
            self._turn.feed(np.concatenate(self._pieces))

    def prepare(self) -> None:
        """This may be all of it: compute everything that comes before the answer."""
        if self._turn:
            self._turn.prepare()

    def step_aside(self) -> None:
        """Free the chat; the sound stays."""
        if self._turn:
            self._turn.cancel()
            self._turn = None

    def clear(self) -> None:
        self.step_aside()
        self._pieces, self._samples = [], 0

    def take(self, chat: Chat) -> Clip:
        """What the model heard; the buffer is empty afterwards. With a turn open it is in the chat's history too.

        Raises:
            ProtocolError: under 100 ms, or more than the context can take; the sound stays.
        """
        if self._samples * 1000 < MIN_MS * MODEL_RATE_HZ:
            raise ProtocolError(
                f"Error committing input audio buffer: buffer too small. Expected at least {MIN_MS}ms of audio, but "
                f"buffer only has {1000 * self.seconds:.2f}ms of audio.",
                "input_audio_buffer_commit_empty",
            )
        clip: Clip | None = None
        if self._turn:
            try:
                self._turn.add()
            except ContextFullError as e:
                raise ProtocolError(f"The sound is too long for the model's context: {e}.", "context_full") from e
            clip, self._turn = chat.turns[-1].clip, None
        if clip is None:
            clip = Clip.of(chat.encode(np.concatenate(self._pieces), MODEL_RATE_HZ), self.seconds)
        self._pieces, self._samples = [], 0
        return clip
