"""What endpointing goes by."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.checks import check_choice, check_number, check_whole
from edge_sdk.errors import Error

KEPT_S = 4.0  # of recent sound: what an utterance that was doubtful needs, and the pre-roll


@dataclass(frozen=True)
class EndpointConfig:
    """When speech begins and ends. Times in milliseconds.

    Args:
        mode: "always" listens for speech; "push_to_talk" takes what is between `press` and `release`.
        threshold: speech probability from which on a frame of 32 ms counts as speech.
        min_speech_ms: speech needed before an utterance has begun; other sound in between takes from it.
        pause_ms: silence after which a pause is announced.
        silence_ms: silence after which the utterance has ended, until the speaker is known.
        min_silence_ms, max_silence_ms: bounds between which that limit follows the speaker's own pauses.
        min_utterance_ms: utterances with less speech than this end as "too_short".
        max_utterance_ms: utterances end here at the latest.
        preroll_ms: sound taken from before the first frame of speech: soft first phonemes stand there.
    """

    mode: str = "always"
    threshold: float = 0.5
    min_speech_ms: int = 96
    pause_ms: int = 160
    silence_ms: int = 704
    min_silence_ms: int = 480
    max_silence_ms: int = 1600
    min_utterance_ms: int = 128
    max_utterance_ms: int = 30000
    preroll_ms: int = 320

    def __post_init__(self) -> None:
        check_choice("EndpointConfig: mode", self.mode, ("always", "push_to_talk"))
        check_number("EndpointConfig: threshold", self.threshold, 0.01, 0.99, want="a probability from 0.01 to 0.99")
        for name in ("min_speech_ms", "pause_ms", "silence_ms", "min_silence_ms", "max_silence_ms", "max_utterance_ms"):
            check_whole(f"EndpointConfig: {name}", getattr(self, name), 1)
        for name in ("min_utterance_ms", "preroll_ms"):
            check_whole(f"EndpointConfig: {name}", getattr(self, name), 0)
        if not self.pause_ms < self.min_silence_ms <= self.silence_ms <= self.max_silence_ms:
            raise Error(
                "EndpointConfig: pause_ms < min_silence_ms <= silence_ms <= max_silence_ms is needed, found "
                f"{self.pause_ms}, {self.min_silence_ms}, {self.silence_ms}, {self.max_silence_ms}"
            )
        if self.preroll_ms + self.min_speech_ms > KEPT_S * 500:
            raise Error(
                f"EndpointConfig: preroll_ms and min_speech_ms together must be at most {KEPT_S * 500:.0f}, found "
                f"{self.preroll_ms + self.min_speech_ms}"
            )
        if self.max_utterance_ms <= self.preroll_ms + self.min_speech_ms:
            raise Error(
                "EndpointConfig: max_utterance_ms must be more than preroll_ms and min_speech_ms together, found "
                f"{self.max_utterance_ms}"
            )
