"""Echo cancellers in simulated rooms: how much echo they take, what they leave of the user, what they cost.

    python -m tests.bench.echo [--minutes 2] [--cancellers webrtc,speex,off] [--delays 20,100,300] [--levels 0,6,12]

Per canceller, delay and level: ERLE in the first 3 s of a reply and later, what is left over the room's noise, false
triggers of speech per hour of the assistant's own speech (silero at 0.5 for 96 ms; and with the guard: only what is
louder than `echo_db`), barge-ins that were missed and how late they were seen, the loss of the user's level, CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from edge_sdk.echo import open_canceller
from edge_sdk.echo_level import level_db
from edge_sdk.errors import DeviceError
from edge_sdk.vad import FRAME_SAMPLES, SpeechDetector
from tests.room import REPLY_DB, USER_DB, Room, speech_level_db
from tests.speech import clip

Array = np.ndarray[Any, Any]
FAR = ("tts_hibari_chat_sad", "tts_hibari_q_pause", "tts_hibari_q_time_london", "tts_hibari_cmd_timer10")
NEAR = ("tts_joe_barge_wait", "tts_joe_cmd_off", "human_librivox_0880", "tts_joe_q_weather", "human_librivox_0930")
EVERY_S = 12.0  # a barge-in
THRESHOLD, FRAMES = 0.5, 3  # of the detector: 96 ms
GUARD_DB = 6.0  # louder than the echo may be
LOOK_S = 2.0  # later than this a barge-in was missed
TAIL_S = 1.5  # after the user's words, speech is no false trigger


def far_speech(minutes: float) -> Array:
    pcm = np.concatenate([clip(name) for name in FAR])
    pcm = np.tile(pcm, int(np.ceil(minutes * 60 * 16000 / len(pcm))))[: int(minutes * 60 * 16000)]
    return pcm * np.float32(10 ** ((REPLY_DB - speech_level_db(pcm)) / 20))


def simulate(
    name: str, delay_ms: float, speaker_db: float | None, reverberation_s: float, minutes: float
) -> dict[str, float]:
    """One reply of so many minutes, a barge-in every EVERY_S seconds in its second half; it is not cut."""
    far = far_speech(minutes)
    room = Room(
        delay_ms=delay_ms, speaker_db=speaker_db, reverberation_s=reverberation_s, echo_cancellation=name,
        drift_ppm=50, snr_db=30, keep=True,
    )  # fmt: skip
    with room:
        room.play(far, 16000)
        room.end_reply()
        half_s, end_s = minutes * 30, minutes * 60 - EVERY_S
        users = [
            room.say(clip(NEAR[k % len(NEAR)]), at_s)
            for k, at_s in enumerate(np.arange(half_s, end_s, EVERY_S).tolist())
        ]
        heard = []
        began = time.process_time()
        while room.now() < minutes * 60:
            piece = room.read()
            assert piece is not None
            heard.append(piece)
        cpu_s = time.process_time() - began
    out, taken = np.concatenate([h.pcm for h in heard]), np.concatenate(room.microphone)
    return {
        "erle_3s_db": loss(taken, out, 0.3, 3),
        "erle_db": loss(taken, out, 3, half_s),
        "left_dbfs": level_db(out[3 * 16000 : int(half_s * 16000)]),
        **triggers(out, heard, users, half_s, minutes * 60),
        "user_loss_db": np.mean([USER_DB - speech_level_db(part(out, *span)) for span in users]),
        "room_ms_per_s": 1e3 * cpu_s / (60 * minutes),
    }


def part(pcm: Array, first_s: float, last_s: float) -> Array:
    return pcm[int(first_s * 16000) : int(last_s * 16000)]


def loss(taken: Array, out: Array, first_s: float, last_s: float) -> float:
    return level_db(part(taken, first_s, last_s)) - level_db(part(out, first_s, last_s))


def triggers(
    out: Array, heard: list[Any], users: list[tuple[float, float]], half_s: float, end_s: float
) -> dict[str, float]:
    speech = np.array(SpeechDetector().feed(out)) >= THRESHOLD
    echo_db = np.concatenate([[h.echo_db] * (len(h.pcm) // 160) for h in heard])
    frames = len(speech)
    levels = np.array([level_db(out[k * FRAME_SAMPLES : (k + 1) * FRAME_SAMPLES]) for k in range(frames)])
    echo = np.array([np.max(echo_db[int(k * 3.2) : int(k * 3.2) + 4]) for k in range(frames)])
    found = {}
    for guard, label in ((False, ""), (True, "_guarded")):
        runs = onsets(speech & (levels > echo + GUARD_DB) if guard else speech)
        own = [t for t in runs if not any(a - 0.1 <= t <= b + TAIL_S for a, b in users)]
        late = []
        for a, _ in users:
            after = [t for t in runs if a <= t <= a + LOOK_S]
            late.append(after[0] - a if after else np.inf)
        hours = (end_s - sum(b + TAIL_S - a for a, b in users)) / 3600
        seen = [t for t in late if np.isfinite(t)]
        found[f"false_per_hour{label}"] = len(own) / hours
        found[f"missed{label}"] = 1 - len(seen) / len(late)
        found[f"seen_after_ms{label}"] = 1e3 * float(np.median(seen)) if seen else float("nan")
    return found


def onsets(speech: Array) -> list[float]:
    """When FRAMES frames in a row were speech, seconds; a run counts once."""
    count, found = 0, []
    for k, is_speech in enumerate(speech):
        count = count + 1 if is_speech else 0
        if count == FRAMES:
            found.append((k + 1) * FRAME_SAMPLES / 16000)
    return found


def cost_ms(name: str) -> float:
    """CPU time of the canceller alone for a second of sound."""
    canceller = open_canceller(name)
    if canceller is None:
        return 0.0
    pcm = (np.random.default_rng(0).standard_normal(16000) * 0.1).astype(np.float32)
    began = time.process_time()
    for k in range(2000):
        first = k * 160 % 15000
        canceller.process(pcm[first : first + 160], pcm[first + 160 : first + 320])
    cost = (time.process_time() - began) * 1e3 / 20
    canceller.close()
    return cost


def added_delay_ms(name: str) -> float:
    """How much later the user's sound comes out than it went in, nothing being played."""
    canceller = open_canceller(name)
    if canceller is None:
        return 0.0
    pcm = clip("tts_joe_barge_wait")
    silent = np.zeros(160, np.float32)
    frames = [canceller.process(pcm[k : k + 160], silent) for k in range(0, len(pcm) - 160, 160)]
    canceller.close()
    out = np.concatenate(frames)
    n = 1 << 17
    match = np.fft.irfft(np.fft.rfft(out, n) * np.conj(np.fft.rfft(pcm, n)), n)
    return float(np.argmax(match[:8000])) / 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--cancellers", default="webrtc,speex,off")
    parser.add_argument("--delays", default="20,100,300")
    parser.add_argument("--levels", default="0,6,12", help="dB; none: the speaker cannot be heard at all")
    parser.add_argument("--reverberation", default="0.3")
    options = parser.parse_args()
    rows = []
    columns = ("erle_3s_db", "erle_db", "left_dbfs", "false_per_hour", "missed", "seen_after_ms",
               "false_per_hour_guarded", "missed_guarded", "seen_after_ms_guarded", "user_loss_db")  # fmt: skip
    print("canceller  delay level  RT60 ", *(f"{c.replace('_guarded', '+g')[:15]:>15}" for c in columns))
    for name in options.cancellers.split(","):
        try:
            print(f"{name}: {cost_ms(name):.1f} ms of CPU per second, adds {added_delay_ms(name):.1f} ms")
        except DeviceError as e:
            print(f"{name}: {e}")
            continue
        for rt60 in map(float, options.reverberation.split(",")):
            for delay in map(float, options.delays.split(",")):
                for level in (None if x == "none" else float(x) for x in options.levels.split(",")):
                    row = simulate(name, delay, level, rt60, options.minutes)
                    rows.append({"canceller": name, "delay_ms": delay, "speaker_db": level, "rt60_s": rt60, **row})
                    print(f"{name:9} {delay:6.0f} {level!s:>5} {rt60:5.2f} ", *(f"{row[c]:15.2f}" for c in columns))
    print(json.dumps([{k: rounded(v) for k, v in row.items()} for row in rows]))


def rounded(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else round(float(value), 3) if np.isfinite(value) else None


if __name__ == "__main__":
    main()
