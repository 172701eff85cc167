"""Reused caches give what full recomputation gives: across turns, while audio arrives, and however text merges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.audio import load_audio
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.clip import ClipEncoder
from edge_sdk.encoder import Encoder
from edge_sdk.errors import AudioError, Error
from edge_sdk.events import Done, Reply
from edge_sdk.generation import GenerationConfig
from tests import speech_goldens

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=8)
SAMPLED = GenerationConfig(max_new_tokens=8, seed=11, text_greedy=False)
# Texts that merge with what stands around them, or look like what stands there.
TEXTS = [
    "Hello there.",
    "\n\nodd",
    " leading",
    "a",
    "我听",
    "n",
    "<|im_end|>",
    "<tool_call>",
    "user\n",
    "  \n  ",
    "é\u0301",
]


@pytest.fixture(scope="module")
def bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as opened:
        yield opened


def tokens(reply: Reply) -> tuple[Any, ...]:
    return reply.text, reply.text_ids, reply.speech_ids, reply.finish_reason


def pcm(seed: int, seconds: float, loud: float = 0.2) -> Any:
    rng = np.random.default_rng(seed)
    t = np.arange(int(16000 * seconds)) / 16000
    wave = np.sin(2 * np.pi * rng.uniform(100, 900) * t) + 0.3 * rng.standard_normal(len(t))
    return (loud * wave).astype(np.float32)


turns = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.sampled_from(TEXTS)),
        st.tuples(st.just("audio"), st.integers(0, 5)),
        st.tuples(st.just("both"), st.integers(0, 5)),
    ),
    min_size=2,
    max_size=4,
)


def ask(chat: Chat, turn: Any) -> Reply:
    kind, value = turn
    audio = None if kind == "text" else pcm(value, 0.3 + 0.45 * value)
    return chat.send(audio, value if kind == "text" else "and this" if kind == "both" else None)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns, config=st.sampled_from([GREEDY, SAMPLED]), speech=st.booleans())
def test_random_conversations(bundle: Bundle, turns: Any, config: GenerationConfig, speech: bool) -> None:
    with (
        Chat(bundle, generation=config, context_tokens=400, speech=speech) as reusing,
        Chat(bundle, generation=config, context_tokens=400, speech=speech) as anew,
    ):
        for turn in turns:
            anew._context.reset()
            assert tokens(ask(reusing, turn)) == tokens(ask(anew, turn))
        assert anew._context.reused == 0
        assert reusing._context.reused > 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.floats(0.05, 5.0),
    cuts=st.lists(st.floats(0, 1), max_size=8),
    loud=st.sampled_from(["flat", "rising", "bang at the end"]),
    config=st.sampled_from([GREEDY, SAMPLED]),
)
def test_streamed_question_equals_sent(
    bundle: Bundle, seconds: float, cuts: list[float], loud: str, config: GenerationConfig
) -> None:
    sound = pcm(3, seconds)
    if loud == "rising":
        sound *= np.linspace(1e-4, 1, len(sound), dtype=np.float32)
    elif loud == "bang at the end":
        sound *= 1e-4
        sound[-200:] = 0.9
    at = sorted(int(c * len(sound)) for c in cuts)
    with Chat(bundle, generation=config, context_tokens=256) as chat:
        whole = chat.send(sound)
    with Chat(bundle, generation=config, context_tokens=256) as chat:
        turn = chat.begin_turn()
        for a, b in zip([0, *at], [*at, len(sound)], strict=True):
            turn.feed(sound[a:b])
        done = list(turn.finish())[-1]
        assert isinstance(done, Done)
        assert tokens(done.reply) == tokens(whole)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.floats(0.05, 6.0),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=8),
    loud=st.sampled_from(["flat", "rising", "bang at the end"]),
    config=st.sampled_from([GREEDY, SAMPLED]),
    text=st.sampled_from([None, "and this"]),
)
def test_pauses_that_may_be_the_end_change_nothing(
    bundle: Bundle,
    seconds: float,
    cuts: list[tuple[float, bool]],
    loud: str,
    config: GenerationConfig,
    text: str | None,
) -> None:
    """`prepare` wherever the speaker pauses: the same tokens, in this turn and in the one after."""
    sound = pcm(3, seconds)
    if loud == "rising":
        sound *= np.linspace(1e-4, 1, len(sound), dtype=np.float32)
    elif loud == "bang at the end":
        sound *= 1e-4
        sound[-200:] = 0.9
    with Chat(bundle, generation=config, context_tokens=400) as chat:
        whole = [chat.send(sound, text), chat.send(sound[::-1].copy())]
    at = sorted((int(c * len(sound)), pause) for c, pause in cuts)
    with Chat(bundle, generation=config, context_tokens=400) as chat:
        turn = chat.begin_turn()
        begin = 0
        for end, pause in [*at, (len(sound), True)]:
            turn.feed(sound[begin:end])
            begin = end
            if pause:
                turn.prepare()
        done = list(turn.finish(text))[-1]
        assert isinstance(done, Done)
        assert tokens(done.reply) == tokens(whole[0])
        assert tokens(chat.send(sound[::-1].copy())) == tokens(whole[1])


@pytest.mark.parametrize("text", [None, "and this"])
def test_after_prepare_only_decoding_is_left(bundle: Bundle, text: str | None) -> None:
    with Chat(bundle, generation=GREEDY, context_tokens=256) as chat:
        turn = chat.begin_turn()
        turn.feed(pcm(1, 3.3))
        turn.prepare()
        encode = turn._encoder._encoder.window
        turn._encoder._encoder.window = None  # type: ignore[method-assign, assignment]
        reply = list(turn.finish(text))[-1].reply  # type: ignore[union-attr]
        turn._encoder._encoder.window = encode  # type: ignore[method-assign]
    left = reply.timings.prompt_tokens - reply.timings.reused_tokens
    assert left == 0 if text is None else 0 < left < 20


def test_a_pause_that_was_not_the_end_costs_a_rewind_only(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was encoded and prefilled before it is not again: feeding goes on as if there had been no pause."""
    positions: dict[bool, list[int]] = {False: [], True: []}
    for pauses, run in positions.items():
        with Chat(bundle, generation=GREEDY, context_tokens=256) as chat:
            backbone = chat._context.backbone
            prefill = backbone.prefill
            counted = lambda ids, *rest, run=run, prefill=prefill: (run.append(len(ids)), prefill(ids, *rest))[1]  # noqa: E731
            turn, sound = chat.begin_turn(), pcm(1, 9.0)
            for at in range(0, len(sound), 1600):
                monkeypatch.setattr(backbone, "prefill", counted)
                turn.feed(sound[at : at + 1600])
                monkeypatch.undo()
                if pauses and at % 8000 == 0:
                    turn.prepare()
            assert turn._encoder.redone == 0
            turn.cancel()
    assert positions[True] == positions[False]
    assert len(positions[True]) == 5


def test_what_cannot_be_prepared(bundle: Bundle) -> None:
    with Chat(bundle, generation=GREEDY, context_tokens=256) as chat:
        with chat.begin_turn() as turn:
            turn.prepare()  # nothing was said yet
            turn.feed(pcm(1, 0.02))
            turn.prepare()
            with pytest.raises(AudioError, match="at least 640"):
                turn.finish()
        with pytest.raises(Error, match="this turn is over"):
            turn.prepare()
        with chat.begin_turn(48000) as turn:
            turn.feed(pcm(1, 0.5))
            with pytest.raises(Error, match="16000 Hz, this turn is at 48000 Hz"):
                turn.prepare()


def test_a_question_is_prefilled_while_it_is_asked(bundle: Bundle) -> None:
    """After the last word only the tail window is left, whatever the length of the question."""
    left = {}
    for seconds in (3.0, 7.0, 15.0):
        with Chat(bundle, generation=GREEDY, context_tokens=256) as chat:
            turn = chat.begin_turn()
            sound = pcm(1, seconds)
            for at in range(0, len(sound), 1600):
                turn.feed(sound[at : at + 1600])
            reply = list(turn.finish())[-1].reply  # type: ignore[union-attr]
            left[seconds] = reply.timings.prompt_tokens - reply.timings.reused_tokens
    assert left[3.0] == left[7.0] == left[15.0] < 20


def test_only_windows_that_a_louder_moment_changes_are_encoded_again(bundle: Bundle) -> None:
    assert bundle.manifest.model
    model = bundle.manifest.model
    # White noise spans some five orders of magnitude, so the first window never falls 8 below a maximum to come; the
    # second window is nearly silent and does.
    noise = np.random.default_rng(1).standard_normal(7 * 16000).astype(np.float32)
    sound = noise * np.repeat(np.float32([0.1, 1e-5, 0.1, 0.5]), [32000, 32000, 32000, 16000])
    clip = ClipEncoder(Encoder(bundle.runtime(), model), model, "full")
    before = None
    for at in range(0, len(sound), 800):
        clip.feed(sound[at : at + 800])
        if at == 6 * 16000:
            before = clip.clip()
    assert clip.redone >= 1
    after = clip.finish()
    assert before is not None
    per_window = model.encoder.window_frames // model.frames_per_token // model.group_size
    kept = after.keys[: len(before.keys)] == before.keys
    assert kept[:per_window].all()
    assert not kept[per_window : 2 * per_window].any()
    whole = ClipEncoder(Encoder(bundle.runtime(), model), model, "full")
    whole.feed(sound)
    assert np.array_equal(whole.finish().rows, after.rows)


def test_a_cancelled_turn_leaves_no_trace(bundle: Bundle) -> None:
    with (
        Chat(bundle, generation=GREEDY, context_tokens=256) as chat,
        Chat(bundle, generation=GREEDY, context_tokens=256) as other,
    ):
        for c in (chat, other):
            c.send(text="Hello there.")
        turn = chat.begin_turn()
        turn.feed(pcm(5, 4.3))
        turn.cancel()
        turn.cancel()
        assert chat.history == other.history
        assert tokens(chat.send(pcm(2, 1.0))) == tokens(other.send(pcm(2, 1.0)))


def test_long_audio(bundle: Bundle) -> None:
    """Past 30 s: "full" hears it, "upstream" gets silence of its own making."""
    sound = load_audio(speech_goldens.recording("syn33"))
    other = sound.copy()
    other[31 * 16000 :] = pcm(9, 3.0)[: len(other) - 31 * 16000] * 0.1
    config = GREEDY.replace(max_new_tokens=4)
    rows: dict[str, list[Any]] = {}
    for mode in ("full", "upstream"):
        with Chat(bundle, generation=config, context_tokens=512, long_audio=mode) as chat:  # type: ignore[arg-type]
            rows[mode] = [chat.encode(s) for s in (sound, other)]
            assert len(rows[mode][0]) == 165
    assert np.array_equal(*rows["upstream"])
    assert not rows["upstream"][0][150:].any()
    assert np.array_equal(rows["full"][0][:150], rows["full"][1][:150])
    assert not np.array_equal(*rows["full"])
    assert np.abs(rows["full"][0][150:]).max(axis=1).all()
