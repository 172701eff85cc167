"""A conversation that is changed between turns: its history as values, its system prompt, voice and tools."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.conversation import Turn
from edge_sdk.errors import AudioError, BundleError, BusyError, Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.vocoder import Vocoder
from tests import speech_goldens as goldens
from tests.bundles import RANDOM

SHORT = GenerationConfig(do_sample=False, max_new_tokens=4)
QUESTION = goldens.recording("syn1p3")


@pytest.fixture(scope="module")
def bundle() -> Iterator[Bundle]:
    with Bundle.open(RANDOM) as opened:
        yield opened


@pytest.fixture
def chat(bundle: Bundle) -> Iterator[Chat]:
    with Chat(bundle, generation=SHORT, context_tokens=512) as opened:
        yield opened


def test_a_history_goes_from_chat_to_chat(bundle: Bundle, chat: Chat) -> None:
    chat.send(audio=QUESTION)
    chat.send(text="And?")
    with Chat(bundle, generation=SHORT, context_tokens=512) as other:
        other.edit(chat.turns)
        assert other.history == chat.history
        assert other.send(text="Why?").text_ids == chat.send(text="Why?").text_ids


def test_an_edited_history_keeps_the_caches_up_to_the_change(chat: Chat) -> None:
    chat.send(text="word " * 40)
    chat.send(text="And?")
    chat.edit(chat.turns[:2])
    timings = chat.send(text="Or?").timings
    assert 100 < timings.reused_tokens < timings.prompt_tokens
    again = chat.turns
    chat.reset()
    chat.edit(again[:2])
    chat.add("user", text="Or?")
    assert chat.send().timings.reused_tokens == 0


def test_an_edit_is_the_last_word(chat: Chat) -> None:
    """An interruption of the reply before cuts nothing any more."""
    chat.send(text="Hi")
    chat.edit([Turn("user", text="A"), Turn("assistant", text="B")])
    chat.interrupt(played_ms=0)
    assert [turn["text"] for turn in chat.history] == ["A", "B"]


def test_a_spoken_turn_without_an_answer(bundle: Bundle, chat: Chat) -> None:
    pcm = np.sin(np.arange(48000) / 9).astype(np.float32) / 2
    turn = chat.begin_turn()
    turn.feed(pcm)
    with pytest.raises(BusyError):
        chat.edit([])
    turn.add()
    assert [t["role"] for t in chat.history] == ["user"]
    with pytest.raises(Error, match="this turn is over"):
        turn.feed(pcm)
    spoken = chat.send()
    assert spoken.timings.reused_tokens > 10
    with Chat(bundle, generation=SHORT, context_tokens=512) as other:
        assert other.send(audio=pcm, sample_rate=16000).speech_ids == spoken.speech_ids


def test_too_little_sound_stays_open(chat: Chat) -> None:
    turn = chat.begin_turn()
    turn.feed(np.zeros(100, np.float32))
    with pytest.raises(AudioError, match="at least 640"):
        turn.add()
    turn.feed(np.zeros(1000, np.float32))
    turn.add()
    assert len(chat.history) == 1


def test_system_prompt_voice_and_tools_between_turns(bundle: Bundle, chat: Chat) -> None:
    tools = [{"name": "light", "parameters": {"type": "object"}}]
    with Chat(
        bundle, generation=SHORT, context_tokens=512, system="Be short.", tools=tools, voice="zh_female"
    ) as other:
        chat.send(text="Hi")
        chat.configure(system="Be short.", tools=tools, voice="zh_female")
        other.edit(chat.turns)
        mine, theirs = chat.send(text="And?"), other.send(text="And?")
        assert mine.timings.prompt_tokens == theirs.timings.prompt_tokens
        assert mine.text_ids == theirs.text_ids
        chat.edit(())
        chat.configure()
        assert chat.send(text="Hi").timings.prompt_tokens < 60


def test_what_cannot_be_configured_changes_nothing(bundle: Bundle, chat: Chat) -> None:
    before = chat._conversation.render([Turn("user", text="x")]).ids.tolist()
    with pytest.raises(BundleError, match="no voice 'nobody'"):
        chat.configure(system="other", voice="nobody")
    with pytest.raises(Error, match="two tools"):
        chat.configure(system="other", tools=[{"name": "a"}, {"name": "a"}])
    with pytest.raises(Error, match="must be a string"):
        chat.configure(system=1)  # type: ignore[arg-type]
    assert chat._conversation.render([Turn("user", text="x")]).ids.tolist() == before
    with Chat(bundle, speech=False) as silent, pytest.raises(Error, match="makes no sound"):
        silent.configure(voice="zh_female")


def test_a_vocoder_with_another_voice(bundle: Bundle) -> None:
    ids = np.arange(60) * 7 % 300
    noise = Vocoder(bundle)
    other = noise.with_voice("zh_female")
    wanted = Vocoder(bundle, "zh_female").synthesize(ids)
    before = noise.synthesize(ids)
    assert np.array_equal(other.synthesize(ids), wanted)
    assert np.array_equal(noise.synthesize(ids), before)
    assert not np.array_equal(before, wanted)
