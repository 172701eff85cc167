"""Speech codes on disk: encoded once for each tokenizer; and the rendered replies as the codec takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import Error
from samples.nano.codec.speech import Utterance, resampled_f0, utterance
from samples.nano.codec.store import SHARD_REPLIES, CodeStore
from samples.nano.settings import TINY
from samples.nano.voices.hibari_voice import F0_RATE, Spoken
from tests import tolerances

SOUND = TINY.sound
COUNT = SHARD_REPLIES + 5


def made(number: int) -> Utterance:
    return Utterance(f"Reply {number}.", "train", np.zeros(0, np.float32), np.full(number % 7 + 2, 100.0, np.float32))


REPLIES = [made(n) for n in range(COUNT)]


def code(u: Utterance) -> np.ndarray:
    """As many as the f0 is long, told by the text."""
    return (np.arange(len(u.f0_hz)) * 1000 + sum(u.text.encode())) % 6561


class Times:
    """True so many times; how often it was asked beyond that."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> bool:
        self.left -= 1
        return self.left >= 0


def test_codes_belong_to_a_tokenizer(tmp_path: Path) -> None:
    store = CodeStore(tmp_path, "first")
    with pytest.raises(Error, match=r"codes-00000\.npz' is missing or of another speech tokenizer"):
        store.read()
    assert not store.fill(REPLIES, code, Times(1))
    assert len(store.read()) == SHARD_REPLIES
    assert store.fill(REPLIES, code, Times(1))
    assert store.fill(REPLIES, code, Times(0)), "all of it is there"
    codes = CodeStore(tmp_path, "first").read()
    assert list(codes) == [u.text for u in REPLIES]
    for u in REPLIES:
        np.testing.assert_array_equal(codes[u.text], code(u))
    with pytest.raises(Error, match="of another speech tokenizer"):
        CodeStore(tmp_path, "second").read()


def test_other_replies_are_encoded_anew(tmp_path: Path) -> None:
    store = CodeStore(tmp_path, "first")
    store.fill(REPLIES, code, Times(2))
    assert store.fill(REPLIES[3:20], code, Times(1))
    assert list(store.read()) == [u.text for u in REPLIES[3:20]]


def test_a_spoilt_shard_is_named(tmp_path: Path) -> None:
    store = CodeStore(tmp_path, "first")
    store.fill(REPLIES[:2], code, Times(1))
    store.path(0).write_bytes(store.path(0).read_bytes()[:100])
    with pytest.raises(Error, match=r"codes-00000\.npz' holds no speech codes"):
        store.read()


def test_f0_at_the_mels_frames() -> None:
    """80 values a second become 50; between a voiced and an unvoiced one nothing is interpolated."""
    f0 = np.concatenate([np.zeros(16), np.linspace(100, 179, 80)]).astype(np.float32)
    found = resampled_f0(f0, 64, 50)
    assert not found[:10].any()
    assert found[10:60].min() >= 100
    np.testing.assert_allclose(np.diff(found[11:59]), F0_RATE / 50, rtol=0, atol=tolerances.NANO_MEL_ABS)
    assert not found[60:].any()
    assert resampled_f0(f0, 0, 50).shape == (0,)


def test_a_reply_is_filled_up_with_silence() -> None:
    spoken = Spoken(np.full(2500, 0.5, np.float32), SOUND.output_rate_hz, np.full(9, 200.0, np.float32))
    found = utterance("Yes.", "train", spoken, SOUND)
    assert len(found.pcm) == 3 * SOUND.frames_per_token * SOUND.hop_samples
    assert (found.pcm[:2500] == 0.5).all()
    assert not found.pcm[2500:].any()
    assert len(found.f0_hz) == 3 * SOUND.frames_per_token
    assert found.f0_hz.tolist() == [200.0] * 6
    with pytest.raises(Error, match="spoken at 16000 Hz"):
        utterance("Yes.", "train", Spoken(spoken.pcm, 16000), SOUND)
