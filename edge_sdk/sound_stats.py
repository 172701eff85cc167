"""What a sound card counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SoundStats:
    """Counters of a sound card since it was made.

    Attributes:
        underruns: replies that ran dry before their end.
        jitter_ms: sound gathered before a reply begins: grows after underruns, shrinks when there are none.
        device_underruns: times the speaker's device had to play nothing because this process came late.
        device_overruns: times the microphone's device dropped sound because this process came late.
        lost_ms: sound of the microphone that never came, or that `read` came too late for; silence stands for it.
        reopened: times the devices were opened anew after one went away.
        realigned: times the echo canceller's reference had to jump.
        echo_gain_db: level of our own sound in what is heard, less its level as played.
        input_delay_ms, output_delay_ms: what the devices name as their delay, at the last callback.
    """

    underruns: int
    jitter_ms: float
    device_underruns: int
    device_overruns: int
    lost_ms: float
    reopened: int
    realigned: int
    echo_gain_db: float
    input_delay_ms: float
    output_delay_ms: float
