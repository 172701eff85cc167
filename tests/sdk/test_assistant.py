"""The assistant in a simulated room: turns, interruptions, tools, keys, devices that go away, what is left behind."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge_sdk.assistant import Assistant
from edge_sdk.assistant_events import (
    Answered,
    AssistantEvent,
    Calling,
    Failed,
    Hearing,
    Ignored,
    Interrupted,
    Level,
    Listening,
    Pausing,
    Said,
    Sleeping,
    Speaking,
    Thinking,
)
from edge_sdk.barge_in import BargeInConfig
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.endpoint_config import EndpointConfig
from edge_sdk.errors import DeviceError, Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.wake_word import MicroWakeWord
from tests import speech
from tests.bundles import RANDOM
from tests.forced import make_spoken_answers
from tests.room import Room
from tests.simulated import Conversation

CONFIG = GenerationConfig(seed=1, max_new_tokens=400)
LONG = "the light in the morning sun " * 8  # some 10 s of sound
SHORT = "the light"
CALL = '<tool_call>\n{"name": "lamp", "arguments": {}}\n</tool_call>'
BARGE_IN = "tts_joe_barge_wait"
TICK_MS = 10.0
STEP_MS = 200.0


@pytest.fixture(scope="module")
def bundle() -> Iterator[Bundle]:
    with Bundle.open(RANDOM) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("edge_sdk")]
    for thread in left:
        thread.join(10)
    assert not [t for t in left if t.is_alive()]


def quiet_room(**options: Any) -> Room:
    """No echo: what is tested is who speaks when."""
    return Room(**{"speaker_db": None, "echo_cancellation": "off", **options})


User = Callable[[Conversation, AssistantEvent], None]


def asks(*names: str, then: User | None = None) -> User:
    """Says these one after another, each when the assistant listens, and then leaves. `then` sees the events too."""
    waiting = list(names)

    def user(conversation: Conversation, event: AssistantEvent) -> None:
        if isinstance(event, Listening):
            if waiting:
                conversation.say(speech.clip(waiting.pop(0)))
            else:
                conversation.stop()
        if then:
            then(conversation, event)

    return user


def interrupts(name: str, after_s: float) -> User:
    """Speaks over the first answer."""
    done = []

    def user(conversation: Conversation, event: AssistantEvent) -> None:
        if isinstance(event, Speaking) and not done:
            done.append(conversation.say(speech.clip(name), after_s))

    return user


def kinds(conversation: Conversation) -> list[str]:
    """Text left out, and what only says that a pause came and went."""
    return [type(e).__name__ for e in conversation.events if not isinstance(e, (Said, Pausing))]


# -- turns


def test_a_question_is_answered_and_its_time_accounted_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])
        trace = tmp_path / "trace.json"
        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_weather"), trace=trace).run()
        assert kinds(conversation) == ["Listening", "Hearing", "Thinking", "Speaking", "Answered", "Listening"]
        assert "".join(e.text for e in conversation.of(Said)) == SHORT
        assert [turn["role"] for turn in chat.history] == ["user", "assistant"]
        (answered,) = conversation.of(Answered)
        t = answered.timings
        assert not t.interrupted
        assert t.played_ms == t.reply_ms == len(answered.reply.audio) / 24
        # Every part is there, and they add up to what the user waited for; the room's clock counts in ticks.
        parts = [
            t.endpoint_wait_ms, t.capture_ms, t.vad_ms, t.queue_ms, t.encode_ms, t.prefill_ms, t.first_token_ms,
            t.first_audio_ms, t.playback_ms,
        ]  # fmt: skip
        assert all(part >= 0 for part in parts)
        assert t.endpoint_wait_ms >= EndpointConfig().min_silence_ms
        assert t.response_ms is not None
        assert t.response_ms >= t.endpoint_wait_ms + t.playback_ms
        end_s = conversation.spoken[0][1]
        assert abs(conversation.of(Speaking)[0].at_s - end_s - t.response_ms / 1000) < 0.5  # as the room saw it
        events = json.loads(trace.read_text())
        assert {"speech", "silence", "prepare", "encode", "answer", "reply"} <= {e["name"] for e in events}
        assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


def test_a_pause_inside_a_sentence_is_not_the_end(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])
        said = speech.scene("tts_hibari_q_time_london", 0.1, "tts_joe_q_weather")
        user = asks(then=None)
        begun = []

        def talks(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Listening) and not begun:
                begun.append(conversation.say(said))
            elif isinstance(event, Listening):
                user(conversation, event)

        conversation = Conversation(chat, quiet_room(), talks).run()
        assert len(conversation.of(Thinking)) == 1
        assert conversation.of(Pausing)
        assert conversation.of(Hearing)[1:]
        (answered,) = conversation.of(Answered)
        assert answered.timings.pauses == len(conversation.of(Pausing))
        # All of it was heard: what was before the pause, and after.
        assert chat.history[0]["audio_s"] > len(said) / 16000 - 0.8


def test_a_conversation_goes_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["tts_hibari_q_time_london", "tts_joe_q_story", "human_librivox_0880"]
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT] * 3)
        conversation = Conversation(chat, quiet_room(), asks(*names)).run()
        assert [a.turn for a in conversation.of(Answered)] == [1, 2, 3]
        assert len(chat.history) == 6
        assert all(turn["text"] == SHORT for turn in chat.history[1::2])


def test_a_cough_is_ignored(bundle: Bundle) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        cough = speech.clip("tts_hibari_cmd_stop")[3000:5200]
        config = EndpointConfig(min_utterance_ms=480)

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Listening) and not conversation.spoken:
                conversation.say(cough)

        conversation = Conversation(chat, quiet_room(), user, limit_s=5, endpoint=config).run()
        assert not conversation.of(Thinking)
        assert len(conversation.of(Ignored)) == len(conversation.of(Hearing))
        assert not chat.history


# -- interruptions


def test_a_voice_over_the_answer_ends_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])
        room = quiet_room(keep=True)
        user = asks("tts_joe_q_story", then=interrupts(BARGE_IN, 1.5))
        conversation = Conversation(chat, room, user).run()
        assert not conversation.timed_out
        (interrupted,) = conversation.of(Interrupted)
        first, second = conversation.of(Answered)
        assert (first.turn, first.timings.interrupted) == (1, True)
        assert (second.turn, second.timings.interrupted, second.reply.text) == (2, False, SHORT)
        # Silence within 100 ms of the detection, in what the speaker's device was really given.
        assert interrupted.at_s - interrupted.detected_s <= 0.1
        played = np.concatenate(room.speaker)
        stops = round((interrupted.detected_s + 0.1) * 16000)
        assert np.abs(played[stops - 16000 : stops - 3200]).max() > 0
        assert not played[stops : round(second.timings.endpoint_wait_ms * 16)].any()
        assert interrupted.played_ms == pytest.approx(first.timings.played_ms, abs=0)
        assert 1500 < interrupted.played_ms < 3500
        # The history has what was played, and no more.
        kept = chat.history[1]["text"]
        steps = int(interrupted.played_ms // STEP_MS)
        assert first.reply.text.startswith(kept)
        assert 0 < len(chat._tokenizer.encode(kept)) <= steps + 1


def test_a_short_sound_does_not(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG])
        mhm = speech.clip("tts_hibari_cmd_stop")[3000:6000]

        def hums(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking):
                for after_s in (1.0, 3.0, 5.0):
                    conversation.say(mhm, after_s)

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_story", then=hums)).run()
        assert not conversation.of(Interrupted)
        assert conversation.of(Answered)[0].reply.finish_reason == "stop"


def test_speech_before_the_answer_is_heard_ends_it_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user goes on after what seemed the end: nothing of the answer is played or remembered, nothing is lost."""
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])
        slow = [1]
        backbone, step = chat._context.backbone, chat._context.backbone.step

        def crawls(*args: Any) -> Any:
            while slow:
                time.sleep(0.001)
            return step(*args)

        monkeypatch.setattr(backbone, "step", crawls)

        def goes_on(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Thinking) and event.turn == 1:
                conversation.say(speech.clip(BARGE_IN), 0.0)
            elif isinstance(event, Interrupted):
                slow.clear()

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_story", then=goes_on)).run()
        (interrupted,) = conversation.of(Interrupted)
        assert interrupted.played_ms == 0
        assert [turn["role"] for turn in chat.history] == ["user", "assistant", "user", "assistant"]
        assert chat.history[1]["text"] == ""
        assert chat.history[2]["audio_s"] > 2.0
        assert chat.history[3]["text"] == SHORT


def test_half_duplex_hears_nothing_while_it_speaks(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG])
        user = asks("tts_joe_q_story", then=interrupts(BARGE_IN, 1.5))
        conversation = Conversation(chat, quiet_room(), user, barge_in=BargeInConfig(enabled=False)).run()
        assert not conversation.of(Interrupted)
        assert len(conversation.of(Hearing)) - conversation.of(Answered)[0].timings.pauses <= 1


def test_a_button_ends_an_answer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG])

        def presses(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking):
                conversation.assistant.interrupt()

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_story", then=presses)).run()
        assert kinds(conversation)[-4:] == ["Speaking", "Interrupted", "Answered", "Listening"]
        assert chat.history[-1]["text"] != LONG


def test_stopping_in_the_middle_leaves_a_chat_that_can_be_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])

        def leaves(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking):
                conversation.stop()

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_story", then=leaves)).run()
        assert conversation.of(Answered)[0].timings.interrupted
        assert chat.history[-1]["text"] != LONG
        assert chat.send(text="Hello").text == SHORT


# -- tools


def test_a_tool_s_result_is_spoken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def lamp() -> str:
        return "on"

    with Chat(bundle, generation=CONFIG, tools=[lamp], context_tokens=4096) as chat:
        make_spoken_answers(monkeypatch, chat, ["the " + CALL, SHORT])
        conversation = Conversation(chat, quiet_room(), asks("tts_joe_cmd_off")).run()
        assert [(c.name, c.turn) for c in conversation.of(Calling)] == [("lamp", 1)]
        (answered,) = conversation.of(Answered)
        assert answered.reply.text == "the " + SHORT
        assert answered.timings.played_ms == answered.timings.reply_ms > 0
        assert [turn["role"] for turn in chat.history] == ["user", "assistant", "tool", "assistant"]


def test_the_user_can_interrupt_a_tool(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def lamp() -> None:
        let_go.wait(60)

    with Chat(bundle, generation=CONFIG, tools=[lamp], tool_timeout_s=None, context_tokens=4096) as chat:
        make_spoken_answers(monkeypatch, chat, ["the light " + CALL, "never said", SHORT])

        def speaks(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Calling):
                conversation.say(speech.clip(BARGE_IN), 6.0)  # the words around the call were played

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_cmd_off", then=speaks)).run()
        let_go.set()
        assert len(conversation.of(Interrupted)) == 1
        assert conversation.of(Answered)[-1].reply.text == SHORT
        told = next(turn["text"] for turn in chat.history if turn["role"] == "tool")
        assert "user interrupted" in json.loads(told)["error"]


# -- keys, wake words


def test_push_to_talk(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said without the key is not heard; the key down over an answer ends it."""
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])
        at: list[float] = []

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            press, release = conversation.assistant.press, conversation.assistant.release
            if isinstance(event, Listening) and not at:
                conversation.say(speech.clip("tts_joe_cmd_off"), 0.5)  # to somebody else
                _, end = conversation.say(speech.clip("tts_joe_q_story"), 4.0)
                at.extend([4.0, end])
            elif isinstance(event, Listening):
                conversation.stop()
            elif isinstance(event, Level) and at:
                if at[0] and event.at_s > at[0]:
                    at[0] = 0.0
                    press()
                elif at[1] and event.at_s > at[1]:
                    at[1] = 0.0
                    release()
            elif isinstance(event, Speaking) and event.turn == 1:
                press()
                at[1] = event.at_s + 1.0

        config = EndpointConfig(mode="push_to_talk")
        conversation = Conversation(chat, quiet_room(), user, endpoint=config).run()
        assert kinds(conversation) == [
            "Listening", "Hearing", "Thinking", "Speaking", "Interrupted", "Hearing", "Answered", "Thinking",
            "Speaking", "Answered", "Listening",
        ]  # fmt: skip
        first, _ = conversation.of(Answered)
        assert first.timings.endpoint_wait_ms == 0
        assert 3.5 < chat.history[0]["audio_s"] < 5.0
        assert 0.9 < chat.history[2]["audio_s"] < 1.6


class _Word:
    """A wake word that is loud noise."""

    def __init__(self) -> None:
        self.resets = 0

    def feed(self, pcm: Any) -> bool:
        return bool(len(pcm)) and float(np.abs(pcm).max()) > 0.3

    def reset(self) -> None:
        self.resets += 1


def test_a_wake_word_is_waited_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            slept = conversation.of(Sleeping)
            if isinstance(event, Sleeping) and len(slept) == 1:
                conversation.say(speech.clip("tts_joe_cmd_off"), 0.5)
                conversation.room.say(speech.noise(0.3), 4.0, -3.0)
                conversation.say(speech.clip("tts_joe_q_weather"), 5.0)
            elif isinstance(event, Sleeping):
                conversation.stop()

        word = _Word()
        conversation = Conversation(chat, quiet_room(), user, wake_word=word, awake_s=3.0).run()
        assert kinds(conversation) == [
            "Sleeping", "Listening", "Hearing", "Thinking", "Speaking", "Answered", "Listening", "Sleeping",
        ]  # fmt: skip
        assert word.resets == 1
        asleep = conversation.events[-1].at_s - conversation.of(Answered)[0].at_s
        assert 2.9 < asleep < 3.3


def test_the_kept_library_hears_no_wake_word_in_other_speech() -> None:
    pytest.importorskip("pymicro_wakeword")
    word = MicroWakeWord("hey_jarvis")
    assert not any(word.feed(speech.clip(name)[at : at + 777]) for name in speech.NAMES for at in range(0, 48000, 777))
    word.reset()
    with pytest.raises(Error, match=r"no wake word 'hey_you'; there is .*hey_jarvis"):
        MicroWakeWord("hey_you")


# -- what is kept


def test_nothing_is_kept_unless_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])
        Conversation(chat, quiet_room(), asks("tts_hibari_cmd_stop")).run()
    assert not list(tmp_path.rglob("*"))


def test_recordings_and_session_where_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session, folder = tmp_path / "session.bin", tmp_path / "sound"
    for n in (1, 2):
        chat = Chat.restore(bundle, session, generation=CONFIG) if session.exists() else Chat(bundle, generation=CONFIG)
        with chat:
            make_spoken_answers(monkeypatch, chat, [SHORT])
            user = asks("tts_hibari_cmd_stop")
            conversation = Conversation(chat, quiet_room(), user, session=session, record=folder).run()
            assert len(chat.history) == 2 * n
            (answered,) = conversation.of(Answered)
            question, rate = soundfile.read(folder / f"turn-000{n}-question.wav")
            assert (len(question) / rate, rate) == (chat.history[-2]["audio_s"], 16000)
            reply, rate = soundfile.read(folder / f"turn-000{n}-reply.wav")
            assert (len(reply), rate) == (len(answered.reply.audio), 24000)


# -- what goes wrong


def test_devices_that_go_and_come_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])
        away: list[float] = []

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking) and event.turn == 1:
                conversation.room.unplug()
                threading.Timer(0.2, conversation.room.plug).start()
                away.append(event.at_s)

        conversation = Conversation(
            chat, quiet_room(speed=20.0), asks("tts_joe_q_story", "tts_hibari_cmd_stop", then=user), limit_s=600
        ).run()
        assert not conversation.timed_out
        assert [a.turn for a in conversation.of(Answered)] == [1, 2]
        assert away


def test_a_device_that_is_gone_for_good_ends_it_with_its_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking):
                conversation.room.close()

        conversation = Conversation(chat, quiet_room(), asks("tts_joe_q_story", then=user))
        with pytest.raises(DeviceError, match="closed"):
            conversation.run()
        assert conversation.of(Answered)[0].timings.interrupted
        assert chat.send(text="Hello").text == SHORT


def test_a_question_that_does_not_fit_is_said_and_the_next_is_answered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chat(bundle, generation=CONFIG, context_tokens=90) as chat:
        make_spoken_answers(monkeypatch, chat, ["a"])
        story = np.tile(speech.clip("tts_joe_q_story"), 4)
        turns: list[Any] = [story, speech.clip("tts_hibari_cmd_stop")]

        def user(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Listening):
                if turns:
                    conversation.say(turns.pop(0))
                else:
                    conversation.stop()

        conversation = Conversation(chat, quiet_room(), user).run()
        (failed,) = conversation.of(Failed)
        assert "context" in failed.why
        assert [a.turn for a in conversation.of(Answered)] == [2]
        assert len(chat.history) == 2


def test_a_reply_that_fails_is_said_and_the_next_is_answered(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])
        backbone, step = chat._context.backbone, chat._context.backbone.step
        broken: list[int] = []

        def breaks(*args: Any) -> Any:
            if not broken:
                broken.append(1)
                raise RuntimeError("the device is on fire")
            return step(*args)

        monkeypatch.setattr(backbone, "step", breaks)
        make_spoken_answers(monkeypatch, chat, [SHORT, SHORT])
        conversation = Conversation(chat, quiet_room(), asks("tts_joe_cmd_off", "tts_joe_cmd_off")).run()
        assert [f.why for f in conversation.of(Failed)] == ["RuntimeError: the device is on fire"]
        assert [a.turn for a in conversation.of(Answered)] == [2]
        assert len(chat.history) == 2


def test_a_closed_chat_ends_it(bundle: Bundle) -> None:
    chat = Chat(bundle, generation=CONFIG)
    chat.close()
    with pytest.raises(Error, match="this Chat is closed"):
        Conversation(chat, quiet_room(), asks("tts_joe_cmd_off")).run()


def test_an_assistant_runs_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [SHORT])
        conversation = Conversation(chat, quiet_room(), asks("tts_joe_cmd_off")).run()
        with pytest.raises(Error, match="has run; make another"):
            conversation.run()


def test_ctrl_c_ends_it_when_everything_has_ended(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """At moments that differ: whatever the hearing thread does then, no lock stays held."""
    for delay_s in np.linspace(0, 0.01, 6):
        with Chat(bundle, generation=CONFIG) as chat:
            make_spoken_answers(monkeypatch, chat, [LONG, SHORT])

            def presses(conversation: Conversation, event: AssistantEvent, delay_s: float = delay_s) -> None:
                if isinstance(event, Speaking):
                    threading.Timer(delay_s, signal.raise_signal, [signal.SIGINT]).start()

            conversation = Conversation(chat, quiet_room(), asks("tts_joe_cmd_off", then=presses))
            with pytest.raises(KeyboardInterrupt):
                conversation.run()
            (answered,) = conversation.of(Answered)
            assert answered.timings.interrupted
            assert chat.send(text="Hello").text == SHORT


def test_what_the_listener_raises_ends_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, SHORT])

        def fails(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Said):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            Conversation(chat, quiet_room(), asks("tts_joe_cmd_off", then=fails)).run()
        assert chat.send(text="Hello").text == SHORT


def test_places_that_cannot_be_written_are_said_before_anything_starts(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Chat(bundle, generation=CONFIG) as chat:
        for option in ("session", "trace"):
            with pytest.raises(Error, match=r"no directory|cannot be written"):
                Assistant(chat, quiet_room(), **{option: tmp_path / "none" / "x"})
        with pytest.raises(Error, match="recordings cannot be kept"):
            Assistant(chat, quiet_room(), record=tmp_path / "file")
        with pytest.raises(Error, match="awake_s"):
            Assistant(chat, quiet_room(), awake_s=0)
        with pytest.raises(Error, match="margin_db"):
            BargeInConfig(margin_db=-1)


# -- an open speaker


@pytest.mark.parametrize("delay_ms", [40.0, 200.0])
def test_an_open_speaker_does_not_interrupt_itself(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, delay_ms: float
) -> None:
    """And a user over it is heard."""
    with Chat(bundle, generation=CONFIG) as chat:
        make_spoken_answers(monkeypatch, chat, [LONG, LONG, SHORT])
        room = Room(speaker_db=0.0, delay_ms=delay_ms)

        def speaks(conversation: Conversation, event: AssistantEvent) -> None:
            if isinstance(event, Speaking) and event.turn == 2:
                conversation.say(speech.clip("tts_joe_q_story"), 3.0)

        user = asks("tts_joe_q_story", "tts_joe_q_weather", then=speaks)
        conversation = Conversation(chat, room, user, voiced=True).run()
        assert [(a.turn, a.timings.interrupted) for a in conversation.of(Answered)] == [
            (1, False), (2, True), (3, False),
        ]  # fmt: skip
