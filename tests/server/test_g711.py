"""G.711 against the standard's properties, and against Python's own codec where that still exists."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from edge_sdk.server import g711, sound
from edge_sdk.server.errors import ProtocolError

ALL = np.arange(-32768, 32768).astype(np.int16)


@pytest.mark.parametrize("law", g711.LAWS)
def test_against_the_standard_library(law: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop", reason="gone from Python 3.13 on")
    codes = bytes(range(256))
    assert g711.decode(codes, law).astype("<i2").tobytes() == getattr(audioop, f"{law}2lin")(codes, 2)
    assert g711.encode(ALL, law) == getattr(audioop, f"lin2{law}")(ALL.astype("<i2").tobytes(), 2)


@pytest.mark.parametrize("law", g711.LAWS)
def test_a_code_is_the_nearest_and_comes_back_the_same(law: str) -> None:
    codes = bytes(range(256))
    again = g711.encode(g711.decode(codes, law), law)
    assert (g711.decode(again, law) == g711.decode(codes, law)).all()  # mu-law has two zeros
    back = g711.decode(g711.encode(ALL, law), law)
    # Four bits of step in a segment: an error of at most half a step, which is 1/32 of the segment's size; the second
    # part is the first segment's step.
    assert (np.abs(back.astype(int) - ALL.astype(int)) <= np.abs(ALL.astype(int)) // 32 + 16)[1000:-1000].all()


@pytest.mark.parametrize("form", sound.FORMATS)
def test_sound_in_events(form: str) -> None:
    pcm = np.sin(np.arange(4000) / 30).astype(np.float32) / 2
    back = sound.decode(sound.encode(pcm, form), form)
    assert len(back) == len(pcm)
    assert np.abs(back / 32767 - pcm).max() < (1 / 32 if form != "pcm16" else 1 / 32000)


@pytest.mark.parametrize("audio", ["A", "AAA", "A A=", "\u00fc", "AA==" + "AA=="])
def test_what_is_no_base64(audio: str) -> None:
    with pytest.raises(ProtocolError, match="Invalid 'audio'"):
        sound.decode(audio, "pcm16")
