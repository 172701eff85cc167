"""What the assistant needs of a machine's sound: a microphone, a speaker and one clock for both.

The sound card is one such link (`edge_sdk.sound_card`); a simulated room, whose clock may run faster, is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge_sdk.runtime import Array


@dataclass(frozen=True, eq=False)  # arrays do not compare to one answer
class Heard:
    """A piece of what the microphone took, echo removed.

    Attributes:
        pcm: float32 mono [n] in [-1, 1] at the link's `sample_rate`.
        at_s: the link's clock when its last sample was taken.
        playing: sound of ours may be in it: the speaker plays, or did a moment ago (the room's and the devices' delay).
        echo_db: level of that sound as it would stand in the microphone's, dBFS, by the link's best knowledge; -inf if
            none. What is not clearly louder than what is left of it may be an echo that was not removed.
    """

    pcm: Array
    at_s: float
    playing: bool
    echo_db: float


class AudioLink(Protocol):
    """Frames in, sound out. `read` is called by one thread, everything else may be called by any."""

    sample_rate: int
    """Of what is heard, Hz."""

    def start(self) -> None:
        """Open the devices.

        Raises:
            DeviceError: there is none, or it cannot be opened; says which there are.
        """

    def read(self, timeout_s: float | None = None) -> Heard | None:
        """The next piece, in order and without gaps (lost ones are counted and filled with silence).

        None when none came in time. A device that goes away is waited for meanwhile, with a line in the log; of a long
        gap two seconds are filled.

        Raises:
            DeviceError: the link was closed, or its device is gone and the link was told not to wait.
        """

    def begin_reply(self) -> None:
        """What `play` gets from now on is a new reply: `played_ms` starts at 0. Earlier sound that waits is dropped."""

    def play(self, pcm: Array, sample_rate: int) -> None:
        """Append sound of the current reply, float32 mono; returns at once."""

    def flush(self) -> float:
        """Silence, now: what waits is dropped, and so is more of this reply. Returns `played_ms`.

        What the device holds already (its delay) is still heard: `played_ms` goes on for those milliseconds.
        """

    def end_reply(self) -> None:
        """No more sound comes for this reply: running dry is its end from here on, not an underrun."""

    @property
    def played_ms(self) -> float:
        """Of the current reply's sound, what has left the speaker: the device's own delay is taken off."""

    @property
    def pending_ms(self) -> float:
        """Of the current reply's sound, what was given to `play` and has not left the speaker."""

    def now(self) -> float:
        """The link's clock, seconds."""

    def close(self) -> None:
        """Let go of the devices. Safe to call again."""
