"""Turn taking in simulated rooms: who was cut off, who was missed, who waited how long; by noise and echo.

    python -m tests.bench.turn_taking [--minutes 3] [--clips tuned "held out"] [--json]

The assistant, its voice activity, its endpointing, its guard and the echo canceller are the real ones; the model is the
tests' random bundle, whose answers' noise recorded speech takes the place of; the user is recordings that ask, pause
inside sentences and talk over every second answer. The room's clock waits for the model. Over real devices:
`tests.bench.turn_taking_live`.
"""

from __future__ import annotations

import argparse
import json

import pytest

from edge_sdk.chat import Chat
from edge_sdk.commands.output import print_table
from edge_sdk.generation import GenerationConfig
from tests.bench.scripted_user import ANSWER, CASTS, HEADER, Counts, Script, judge, row
from tests.bundles import RANDOM
from tests.forced import make_spoken_answers
from tests.room import Room
from tests.simulated import Conversation


def measure(cast: str, minutes: float, snr_db: float | None, speaker_db: float | None, seed: int) -> Counts:
    script = Script(CASTS[cast])
    room = Room(snr_db=snr_db, speaker_db=speaker_db, seed=seed, shape=script.cast.room)
    config = GenerationConfig(seed=seed, max_new_tokens=60)
    with pytest.MonkeyPatch.context() as patch, Chat(RANDOM, generation=config) as chat:
        make_spoken_answers(patch, chat, [ANSWER] * 1000)
        conversation = Conversation(chat, room, script, limit_s=60 * minutes, voiced=True).run()
    room.close()
    return judge(script, conversation, 0.0, 60 * minutes)


def add_conditions(parser: argparse.ArgumentParser, minutes: float) -> None:
    parser.add_argument("--minutes", type=float, default=minutes, help="for each condition")
    parser.add_argument("--clips", nargs="*", choices=CASTS, default=list(CASTS), help="recordings and room")
    parser.add_argument("--snr", type=float, nargs="*", default=[20.0, 10.0, 0.0])
    parser.add_argument("--speaker", nargs="*", default=["none", "0", "6", "12"], help="dB over the user, or none")
    parser.add_argument("--json", action="store_true", help="one line more, with all figures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_conditions(parser, 3.0)
    args = parser.parse_args()
    rows, found = [], []
    for cast in args.clips:
        for speaker in args.speaker:
            for snr_db in args.snr:
                speaker_db = None if speaker == "none" else float(speaker)
                counts = measure(cast, args.minutes, snr_db, speaker_db, seed=len(rows))
                rows.append(row(cast, snr_db, speaker_db, counts))
                found.append({"clips": cast, "snr_db": snr_db, "speaker_db": speaker_db, **vars(counts)})
                print(*rows[-1], sep="  ", flush=True)
    print_table(rows, HEADER)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
