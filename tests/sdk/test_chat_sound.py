"""Chat with its voice: chunks while tokens are made, the same sound as the vocoder alone, and a stop that stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge_sdk import errors
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.events import AudioChunk, Done, TextDelta
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.generation import GenerationConfig
from edge_sdk.vocoder import Vocoder
from tests import speech_goldens as goldens
from tests import tolerances
from tests.vocoder import goldens as vocoder_goldens

CONFIG = GenerationConfig(max_new_tokens=20, seed=4)
QUESTION = str(goldens.recording("syn1p3"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    target = tmp_path_factory.mktemp("bundles") / "spoken.bundle"
    options = ExportOptions(noise_frames=3000)
    with Bundle.open(export_bundle(goldens.CHECKPOINT, vocoder_goldens.TINY, target, options)) as opened:
        yield opened


def codes(bundle: Bundle, speech_ids: Any) -> Any:
    assert bundle.manifest.vocoder
    return [i for i in speech_ids if i < bundle.manifest.vocoder.flow.codebook_size]


def test_the_sound_is_the_vocoders(bundle: Bundle) -> None:
    for mode in ("streaming", "whole"):
        with Chat(bundle, generation=CONFIG, vocoder=mode, context_tokens=256) as chat:
            events = list(chat.stream(QUESTION))
        done = events[-1]
        assert isinstance(done, Done)
        chunks = [e for e in events if isinstance(e, AudioChunk)]
        assert np.array_equal(np.concatenate([c.pcm for c in chunks]), done.reply.audio)
        assert done.reply.sample_rate == chunks[0].sample_rate == 24000
        starts = np.cumsum([0, *(len(c.pcm) for c in chunks)])[:-1] / 24000
        assert [c.start_s for c in chunks] == pytest.approx(starts.tolist())
        ids = codes(bundle, done.reply.speech_ids)
        assert len(done.reply.audio) == 960 * len(ids)
        alone = Vocoder(bundle, mode=mode).synthesize(ids)  # type: ignore[arg-type]
        assert np.abs(alone - done.reply.audio).max() < tolerances.CUTTING_ABS
        timings = done.reply.timings
        assert timings.audio_s == pytest.approx(len(done.reply.audio) / 24000)
        assert timings.flow_ms > 0
        assert timings.waveform_ms > 0
        assert timings.rtf is not None


def test_sound_comes_while_tokens_are_made(bundle: Bundle) -> None:
    with Chat(bundle, generation=CONFIG.replace(max_new_tokens=120), context_tokens=512) as chat:
        kinds = [type(e) for e in chat.stream(QUESTION)]
    assert kinds.index(AudioChunk) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


def test_first_sound_takes_28_tokens(bundle: Bundle) -> None:
    """audio_bos and six groups: seven ids."""
    for ids, sounds in ((6, False), (7, True)):
        with Chat(bundle, generation=CONFIG.replace(max_new_tokens=ids), context_tokens=256) as chat:
            stream = chat._vocoder.stream()  # type: ignore[union-attr]
            reply = chat.send(QUESTION)
            assert len(reply.speech_ids) == 5 * (ids - 1)
            assert bool(len(stream.push(codes(bundle, reply.speech_ids)))) == sounds
            stream.close()


def test_settings_reach_the_vocoder(bundle: Bundle) -> None:
    def sound(**options: Any) -> Any:
        with Chat(bundle, generation=CONFIG.replace(**options), context_tokens=256) as chat:
            return chat.send(QUESTION).audio

    plain = sound()
    assert np.array_equal(sound(), plain)
    assert np.abs(sound(vocoder_steps=4) - plain).max() > tolerances.CHANGED_ABS
    assert np.abs(sound(cfg_rate=0.0) - plain).max() > tolerances.CHANGED_ABS
    with Chat(bundle, generation=CONFIG, context_tokens=256) as chat:
        with pytest.raises(errors.Error, match="steps"):
            chat.send(QUESTION, generation=CONFIG.replace(vocoder_steps=7))
        assert chat.history == []
        assert np.array_equal(chat.send(QUESTION).audio, plain)


def test_voices(bundle: Bundle) -> None:
    other = np.random.default_rng(0).standard_normal(192).astype(np.float32)
    with Chat(bundle, voice="zh_female", generation=CONFIG, context_tokens=256) as chat:
        named = chat.send(QUESTION).audio
    with Chat(bundle, voice=other, generation=CONFIG, context_tokens=256) as chat:
        assert np.abs(chat.send(QUESTION).audio - named).max() > tolerances.CHANGED_ABS
    with pytest.raises(errors.BundleError, match="no voice 'nobody'; it has zh_female"):
        Chat(bundle, voice="nobody")
    with pytest.raises(errors.Error, match="192"):
        Chat(bundle, voice=np.zeros(3, np.float32))
    with pytest.raises(errors.Error, match="speech is off"):
        Chat(bundle, voice="zh_female", speech=False)


def test_saving_writes_the_sound(bundle: Bundle, tmp_path: Path) -> None:
    with Chat(bundle, generation=CONFIG, context_tokens=256) as chat:
        reply = chat.send(QUESTION)
    reply.save(tmp_path / "reply.wav")
    pcm, rate = soundfile.read(tmp_path / "reply.wav", dtype="float32")
    assert rate == 24000
    assert np.abs(pcm - reply.audio).max() < 1 / 32000


def test_an_interruption_ends_the_sound_too(bundle: Bundle) -> None:
    config = CONFIG.replace(max_new_tokens=700)
    with Chat(bundle, generation=config, context_tokens=1000) as chat:
        stream = chat.stream(QUESTION)
        heard = 0.0
        for event in stream:
            if isinstance(event, AudioChunk):
                heard += len(event.pcm) / event.sample_rate
                if heard > 2:
                    began = time.monotonic()
                    chat.interrupt(played_ms=1000)
        assert stream.reply
        assert stream.reply.finish_reason == "interrupted"
        assert time.monotonic() - began < 5
        assert len(stream.reply.audio) >= 2 * 24000
        assert not [t for t in threading.enumerate() if t.name == "edge_sdk-vocoder" and t.is_alive()]
        # What was said after the first second is not in the history, and the next reply has a clean voice.
        assert len(chat.history[-1]["text"]) < len(stream.reply.text)
        chat.reset()
        first = chat.send(QUESTION, generation=CONFIG)
    with Chat(bundle, generation=CONFIG, context_tokens=1000) as chat:
        assert np.array_equal(chat.send(QUESTION).audio, first.audio)


def test_a_listener_that_is_slow_loses_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel is full most of the time: makers wait, nothing is dropped, nothing hangs."""
    monkeypatch.setattr("edge_sdk.chat.CHANNEL_EVENTS", 1)
    monkeypatch.setattr("edge_sdk.speaker.QUEUE_GROUPS", 1)
    with Chat(bundle, generation=CONFIG, context_tokens=256) as chat:
        events = []
        for event in chat.stream(QUESTION):
            time.sleep(0.01)
            events.append(event)
        done = events[-1]
        assert isinstance(done, Done)
        assert np.array_equal(np.concatenate([e.pcm for e in events if isinstance(e, AudioChunk)]), done.reply.audio)


def test_a_failing_vocoder_is_an_error_and_the_chat_goes_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat(bundle, generation=CONFIG, context_tokens=256) as chat:
        expected = chat.send(QUESTION).audio
        chat.reset()
        monkeypatch.setattr("edge_sdk.speaker.Speaker._deliver", lambda self, pcm: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            chat.send(QUESTION)
        monkeypatch.undo()
        assert chat.history == []
        chat._generations = 0
        assert np.array_equal(chat.send(QUESTION).audio, expected)


def test_a_bundle_without_a_vocoder_makes_tokens(speech_bundle: Bundle) -> None:
    with Chat(speech_bundle, generation=CONFIG, context_tokens=256) as chat:
        reply = chat.send(QUESTION)
        assert reply.speech_ids
        assert (len(reply.audio), chat.sample_rate, reply.timings.rtf) == (0, 0, None)
    with pytest.raises(errors.Error, match="no vocoder"):
        Chat(speech_bundle, voice="zh_female")
