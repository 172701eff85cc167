"""The guard against interrupting ourselves: what it asks of a voice, and that the voice itself does not raise it."""

from __future__ import annotations

import math

import numpy as np

from edge_sdk.audio_link import Heard
from edge_sdk.barge_in import BargeInConfig, BargeInGuard, Demand
from edge_sdk.echo_level import EchoLevel

CONFIG = BargeInConfig(min_speech_ms=224, echo_min_speech_ms=256, margin_db=6.0)
SILENCE = np.zeros(160, np.float32)


def heard(at_s: float, echo_db: float | None = None) -> Heard:
    """None: nothing of ours plays."""
    return Heard(SILENCE, at_s, echo_db is not None, -math.inf if echo_db is None else echo_db)


def test_nothing_is_asked_while_nothing_plays() -> None:
    guard = BargeInGuard(CONFIG)
    assert guard.demand(heard(0.0), answering=False, suspected=False) == Demand()
    assert guard.demand(heard(0.0), answering=True, suspected=False) == Demand(min_speech_ms=224)


def test_a_voice_has_to_be_louder_than_the_echo() -> None:
    guard = BargeInGuard(CONFIG)
    assert guard.demand(heard(0.0, -40.0), answering=True, suspected=False) == Demand(-34.0, 256)


def test_what_was_known_before_a_voice_counts() -> None:
    """The link takes the user for echo and raises its level: not for the guard."""
    guard = BargeInGuard(CONFIG)
    for n in range(100):
        guard.demand(heard(n / 100, -50.0 - n % 7), answering=True, suspected=False)
    for n in range(100, 250):
        assert guard.demand(heard(n / 100, -20.0), answering=True, suspected=True).floor_db == -44.0
    # A louder reply is believed again once nobody is suspected.
    assert guard.demand(heard(2.5, -20.0), answering=True, suspected=False).floor_db == -14.0


def test_a_suspicion_at_once_knows_nothing_better() -> None:
    guard = BargeInGuard(CONFIG)
    assert guard.demand(heard(0.0, -20.0), answering=True, suspected=True).floor_db == -14.0
    assert guard.demand(heard(0.1, -25.0), answering=True, suspected=True).floor_db == -19.0


def test_a_user_who_begins_to_speak_does_not_raise_the_echo_s_level() -> None:
    """For a second; and after it not until they have spoken for half of the time that is remembered."""
    level, random = EchoLevel(), np.random.default_rng(1)
    played = (0.1 * random.standard_normal(160)).astype(np.float32)
    for _ in range(400):
        level.update(played, (1e-4 * random.standard_normal(160)).astype(np.float32))
    before = level.gain_db
    voice = (0.05 * random.standard_normal(160)).astype(np.float32)
    for _ in range(90):
        level.update(played, voice)
    assert level.gain_db - before < 1.0
    for _ in range(90):
        level.update(played, voice)
    assert level.gain_db - before < 1.0
