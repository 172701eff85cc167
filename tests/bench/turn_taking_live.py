"""Turn taking over real audio I/O: the table of `tests.bench.turn_taking`, in real time.

    python -m tests.bench.turn_taking_live [--minutes 1.5] [--clips tuned "held out"] [--speaker none 6] [--json]

`Assistant` and `SoundCard` as shipped, PortAudio, PulseAudio's null sinks as speaker and microphone. The user is
another process that plays recordings, with a room's reverberation and noise, to the microphone's sink at times it is
told; an open speaker is PulseAudio's loopback of what the speaker's sink gets. The answers' sound is replaced by
recorded speech, since a random bundle's is noise. Beneath each row: what the devices counted, since a busy machine is
late.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.assistant import Assistant
from edge_sdk.assistant_events import AssistantEvent, Level, Listening
from edge_sdk.chat import Chat
from edge_sdk.commands.output import print_table
from edge_sdk.generation import GenerationConfig
from edge_sdk.sound_card import SoundCard
from tests.bench.scripted_user import ANSWER, CASTS, HEADER, Counts, Script, judge, row
from tests.bench.turn_taking import add_conditions
from tests.bundles import RANDOM
from tests.forced import make_spoken_answers
from tests.pulse import Pulse, missing, pulse_server
from tests.room import REPLY_DB, USER_DB, Shape, at_the_microphone, path
from tests.simulated import Voiced

ECHO_DELAY_MS = 80
END_WAIT_S = 20


class Microphone:
    """The other process. `say` names times of the monotonic clock, which is the sound card's too."""

    def __init__(self, folder: Path, shape: Shape, snr_db: float | None, seed: int) -> None:
        self._folder, self._response = folder, path(shape, shape.user)
        noise = [] if snr_db is None else ["--snr", str(snr_db)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.microphone_feed", "room_out", "--seed", str(seed), *noise],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._count = 0
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the microphone's sound cannot be played")

    def say(self, pcm: Any, at_s: float) -> None:
        self._count += 1
        place = self._folder / f"{self._count}.npy"
        np.save(place, at_the_microphone(pcm, self._response))
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"path": str(place), "at_s": at_s}) + "\n")
        self._process.stdin.flush()

    def close(self) -> dict[str, Any]:
        """What was late."""
        try:
            out, _ = self._process.communicate(timeout=END_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        found: dict[str, Any] = json.loads(out)
        return found


class LiveConversation:
    """An assistant over devices, for so many seconds; `user` reacts to each event, and may `say`."""

    def __init__(
        self, chat: Chat, card: Any, microphone: Microphone, user: Callable[[Any, AssistantEvent], None], seconds: float
    ) -> None:
        self._card, self._microphone, self._user, self._seconds = card, microphone, user, seconds
        self.assistant = Assistant(chat, card, on_event=self._take)
        self.events: list[AssistantEvent] = []
        self.begin_s: float | None = None

    def run(self) -> None:
        self.assistant.run()

    def say(self, pcm: Any, after_s: float) -> tuple[float, float]:
        at_s = self._card.now() + after_s
        self._microphone.say(pcm, at_s)
        return at_s, at_s + len(pcm) / 16000

    @property
    def idle(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Listening)

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    def _take(self, event: AssistantEvent) -> None:
        if self.begin_s is None:
            self.begin_s = event.at_s
        if isinstance(event, Level):
            if event.at_s > self.begin_s + self._seconds:
                self.assistant.stop()
        else:
            self.events.append(event)
        self._user(self, event)


def measure(
    pulse: Pulse,
    cast: str,
    minutes: float,
    snr_db: float | None,
    speaker_db: float | None,
    *,
    seed: int,
    buffer_ms: float,
) -> tuple[Counts, str]:
    script = Script(CASTS[cast])
    config = GenerationConfig(seed=seed, max_new_tokens=60)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chat = stack.enter_context(Chat(RANDOM, generation=config))
        make_spoken_answers(patch, chat, [ANSWER] * 1000)
        if speaker_db is not None:
            stack.enter_context(pulse.echo(ECHO_DELAY_MS, USER_DB + speaker_db - REPLY_DB))
        microphone = Microphone(folder, script.cast.room, snr_db, seed)
        card = stack.enter_context(SoundCard(input_device="room_in", output_device="speaker_out", buffer_ms=buffer_ms))
        conversation = LiveConversation(chat, Voiced(card), microphone, script, 60 * minutes)
        try:
            conversation.run()
        finally:
            fed = microphone.close()
        stats = card.stats
    begin_s = conversation.begin_s or 0.0
    counts = judge(script, conversation, begin_s, begin_s + 60 * minutes)
    devices = (
        f"underruns {stats.underruns}+{stats.device_underruns}, overruns {stats.device_overruns}, lost "
        f"{stats.lost_ms:.0f} ms, realigned {stats.realigned}, echo left {stats.echo_gain_db:.0f} dB; feed: {fed}"
    )
    return counts, devices


@contextlib.contextmanager
def own_pulse() -> Iterator[Pulse]:
    if reason := missing():
        sys.exit(f"no devices: {reason}")
    with tempfile.TemporaryDirectory() as folder, pulse_server(Path(folder)) as pulse:
        yield pulse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_conditions(parser, 1.5)
    parser.add_argument(
        "--buffer-ms", type=float, default=20.0, help="the sound card's; more where callbacks come late"
    )
    args = parser.parse_args()
    rows, found = [], []
    with own_pulse() as pulse:
        for cast in args.clips:
            for speaker in args.speaker:
                for snr_db in args.snr:
                    speaker_db = None if speaker == "none" else float(speaker)
                    counts, devices = measure(
                        pulse, cast, args.minutes, snr_db, speaker_db, seed=len(rows), buffer_ms=args.buffer_ms
                    )
                    rows.append(row(cast, snr_db, speaker_db, counts))
                    found.append({"clips": cast, "snr_db": snr_db, "speaker_db": speaker_db, **vars(counts)})
                    print(*rows[-1], sep="  ")
                    print(f"    {devices}", flush=True)
    print_table(rows, HEADER)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
