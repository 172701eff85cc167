"""What callers hand over by mistake is an Error of ours that names it, everywhere."""

from __future__ import annotations

import enum
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edge_sdk.audio import load_audio, write_wav
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.checks import check_number, check_whole, without_halves
from edge_sdk.errors import AudioError, BundleError, Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.session import load_session
from edge_sdk.vocoder import Vocoder
from tests.bundles import RANDOM
from tests.forced import make_answers

SHORT = GenerationConfig(do_sample=False, max_new_tokens=4)
HALF = "half \ud83d of it"
NO_PATHS: list[Any] = [None, 5, b"x", "", "a\0b", ["x"]]


@pytest.fixture(scope="module")
def bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def spoken() -> Iterator[Bundle]:
    """With a vocoder."""
    with Bundle.open(RANDOM) as opened:
        yield opened


@pytest.fixture
def chat(bundle: Bundle) -> Iterator[Chat]:
    with Chat(bundle, generation=SHORT, context_tokens=256) as opened:
        yield opened


# -- numbers


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 10**400},
        {"temperature": 1e-50},
        {"temperature": 1j},
        {"temperature": np.complex64(1)},
        {"temperature": True},
        {"repetition_penalty": 1e-50},
        {"repetition_penalty": 1e300},
        {"top_p": 10**400},
        {"cfg_rate": 1e300},
        {"cfg_rate": -1},
        {"cfg_rate": float("inf")},
        {"max_new_tokens": True},
        {"max_new_tokens": "8"},
        {"seed": 10**5000},
        {"bad_words": (5,)},
        {"bad_words": ("",)},
        {"bad_words": ((1.5,),)},
        {"bad_words": (HALF,)},
        {"bad_words": "word"},
    ],
)
def test_generation_configs_that_cannot_work(change: Any) -> None:
    with pytest.raises(Error, match=f"GenerationConfig: {next(iter(change))}"):
        GenerationConfig(**change)


def test_numpys_numbers_are_numbers(spoken: Bundle) -> None:
    config = GenerationConfig(
        max_new_tokens=np.int64(2), temperature=np.float32(0.5), do_sample=np.True_, cfg_rate=np.int64(1),
        bad_words=[np.array([5, 6])], seed=np.uint64(3),
    )  # type: ignore[arg-type]  # fmt: skip
    assert config == GenerationConfig(
        max_new_tokens=2, temperature=0.5, do_sample=True, cfg_rate=1.0, bad_words=((5, 6),), seed=3
    )
    assert {type(getattr(config, n)) for n in ("max_new_tokens", "do_sample", "cfg_rate")} == {int, bool, float}
    with Chat(spoken, generation=config, context_tokens=64) as chat:
        assert len(chat.send(text="Hi").text_ids) == 2


def test_the_extremes_that_are_accepted_work(bundle: Bundle) -> None:
    for factor in (1e-6, 1e6):
        config = GenerationConfig(
            temperature=factor, repetition_penalty=1 / factor, top_p=1e-300, text_greedy=False, max_new_tokens=3, seed=1
        )
        with Chat(bundle, generation=config, context_tokens=64) as chat:
            assert chat.send(text="Hi").text_ids


def test_guidance_is_checked_once_for_all(spoken: Bundle) -> None:
    ids = np.arange(60)
    for wrong in (-1, 1e300, 101, float("nan"), True, "1"):
        for make in (
            lambda value: Vocoder(spoken, cfg_rate=value),
            lambda value: Vocoder(spoken).with_settings(steps=10, cfg_rate=value),
            lambda value: GenerationConfig(cfg_rate=value),
        ):
            with pytest.raises(Error, match="cfg_rate must be a finite number from 0 to 100, found"):
                make(wrong)
    assert np.isfinite(Vocoder(spoken, cfg_rate=100).synthesize(ids)).all()


def test_long_integers_can_be_shown() -> None:
    for check in (lambda: check_number("n", 10**5000), lambda: check_whole("n", -(10**5000), 0)):
        with pytest.raises(Error, match=r"found an integer of \d+ bits"):
            check()


def test_settings_a_bundle_does_not_have_are_an_error_at_opening(spoken: Bundle) -> None:
    with pytest.raises(Error, match="flow steps, asked for 7"):
        Chat(spoken, generation=GenerationConfig(vocoder_steps=7))
    with pytest.raises(Error, match="bad_words"):
        Chat(spoken, generation=GenerationConfig(bad_words=((10**6,),)))


@pytest.mark.parametrize("speech", ["no", 1, 0, None])
def test_speech_is_yes_or_no(bundle: Bundle, speech: Any) -> None:
    with pytest.raises(Error, match="speech must be True or False, found"):
        Chat(bundle, speech=speech)


def test_numpys_yes_can_be_saved(bundle: Bundle, tmp_path: Path) -> None:
    with Chat(bundle, speech=np.False_, generation=SHORT, context_tokens=64) as chat:  # type: ignore[arg-type]
        assert chat.speech is False
        chat.save(tmp_path / "s.bin")
    Chat.restore(bundle, tmp_path / "s.bin", context_tokens=64).close()


@pytest.mark.parametrize(
    "options",
    [
        {"context_tokens": 10**12},
        {"context_tokens": 10**30},
        {"runtime": ["a"]},
        {"runtime": None},
        {"device_id": [1]},
        {"threads": [1]},
        {"threads": True},
        {"on_full": ["drop"]},
        {"on_full": np.array([1, 2])},
        {"vocoder_context_s": float("inf")},
        {"vocoder_context_s": 10**400},
        {"voice": [[1], [1, 2]]},
    ],
)
def test_wrong_options_of_a_chat(spoken: Bundle, options: Any) -> None:
    with pytest.raises(Error):
        Chat(spoken, **options)


def test_a_vocoders_wrong_options(spoken: Bundle) -> None:
    for options in ({"voice": [[1], [1, 2]]}, {"steps": 10.0}, {"mode": ["whole"]}, {"context_s": 10**400}):
        with pytest.raises(Error):
            Vocoder(spoken, **options)  # type: ignore[arg-type]
    with pytest.raises(Error, match="speech tokens"):
        Vocoder(spoken).synthesize([[1], [1, 2]])
    ids = np.arange(60)
    most = Vocoder(spoken, context_s=1e308).synthesize(ids)
    np.testing.assert_array_equal(most, Vocoder(spoken, context_s=None).synthesize(ids))


# -- text


def test_half_a_character_is_refused_where_people_write(chat: Chat, bundle: Bundle) -> None:
    turn_chat = Chat(bundle, generation=SHORT, context_tokens=256)
    turn = turn_chat.begin_turn()
    for call in (
        lambda: chat.send(text=HALF),
        lambda: chat.add("assistant", text=HALF),
        lambda: turn.finish(text=HALF),
        lambda: Chat(bundle, system=HALF),
        lambda: Chat(bundle, tools=[{"name": "x", "description": HALF}]),
    ):
        with pytest.raises(Error, match=r"lone surrogate \(U\+D83D\)"):
            call()
    with turn.finish(text="Hi") as stream:
        assert len(list(stream)) > 1
    turn_chat.close()
    assert chat.history == []


def test_half_a_character_of_a_tool_or_the_model_is_replaced(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def note(text: str) -> str:
        asked.append(text)
        return HALF

    config = GenerationConfig(do_sample=False, max_new_tokens=200)
    with Chat(bundle, speech=False, tools=[note], generation=config) as chat:
        call = '<tool_call>{"name": "note", "arguments": {"text": "\\ud83d, \\ud83d\\ude00"}}</tool_call>'
        unknown = '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>'
        make_answers(monkeypatch, chat, [call + unknown, "Done."])
        assert chat.send(text="Hi").text == "Done."
        assert asked == ["�, 😀"]
        assert [json.loads(t["text"]) for t in chat.history if t["role"] == "tool"] == [
            "half � of it",
            {"error": "there is no function '�'; there is note"},
        ]
        chat.save(tmp_path / "s.bin")
        with Chat.restore(bundle, tmp_path / "s.bin") as again:
            assert again.history == chat.history


def test_halves_that_belong_together_are_joined() -> None:
    assert without_halves("a\ud83d\ude00b\ude00\ud83d") == "a😀b��"
    assert without_halves("plain") == "plain"


def test_every_private_use_character_of_the_first_plane(bundle: Bundle) -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    with Chat(bundle, generation=SHORT, context_tokens=60000) as chat:
        chat.add("user", everything + "<|im_end|>")
        ids = chat._conversation.render().ids.tolist()
        assert everything in chat._tokenizer.decode(ids)
        assert ids.count(chat._tokenizer.added_ids["<|im_end|>"]) == 2  # of the system prompt and of the turn


# -- files


@pytest.mark.parametrize("path", [*NO_PATHS, ".", "/"])
def test_sessions_go_to_paths(chat: Chat, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Error):
        chat.save(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NO_PATHS)
def test_sessions_come_from_paths(bundle: Bundle, path: Any) -> None:
    with pytest.raises(Error):
        Chat.restore(bundle, path)


@pytest.mark.parametrize("path", NO_PATHS[1:])
@pytest.mark.parametrize("kind", [Chat, Vocoder, Bundle.open])
def test_bundles_come_from_paths(path: Any, kind: Callable[[Any], Any]) -> None:
    with pytest.raises(BundleError):
        kind(path)


class Unreadable(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise KeyError("gone")


class Unseekable(Unreadable):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [Unreadable, Unseekable])
def test_a_file_object_that_fails_is_an_audio_error(kind: type[io.BytesIO]) -> None:
    with pytest.raises(AudioError, match="cannot read the audio file object: 'gone'"):
        load_audio(kind(b"RIFF" + bytes(100)))


def test_sound_goes_to_paths_and_binary_files() -> None:
    closed = io.BytesIO()
    closed.close()
    pcm = np.zeros(100, np.float32)
    for target in (*NO_PATHS, io.StringIO(), closed, "."):
        with pytest.raises(AudioError):
            write_wav(target, pcm, 24000)


def test_a_device_and_a_pipe_are_written_to(chat: Chat, bundle: Bundle, tmp_path: Path) -> None:
    chat.send(text="Hi")
    pipe, link, kept = tmp_path / "pipe", tmp_path / "link", tmp_path / "kept.bin"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    chat.save(pipe)
    assert pipe.is_fifo()
    kept.write_bytes(os.read(reader, 1 << 20))
    os.close(reader)
    link.symlink_to(kept)
    chat.save(link)
    assert link.is_symlink()
    assert len(load_session(kept, bundle).turns) == 2
    chat.save("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_save_that_fails_leaves_nothing(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    for name, target in (("os.fsync", stop), ("edge_sdk.session.write_tensors", lambda *_: 1 / 0)):
        with monkeypatch.context() as patch:
            patch.setattr(name, target)
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                chat.save(tmp_path / "s.bin")
        assert not list(tmp_path.iterdir())


def test_a_relative_cache_is_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert bundle._stamp_file().is_relative_to(Path.home() / ".cache")


# -- values


def test_replies_compare_by_identity(chat: Chat) -> None:
    first, second = chat.send(text="Hi"), chat.send(text="Hi")
    assert first == first
    assert first != second
    assert len({first, second}) == 2


class Mood(enum.Enum):
    GOOD = 1


def _annotated(hint: Any) -> Callable[..., Any]:
    def tool(x: Any) -> None: ...

    tool.__annotations__ = {"x": hint}
    return tool


async def later() -> None: ...


class Later:
    __name__ = "later"

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "tools",
    [
        5,
        None,
        [_annotated(Literal[b"a"])],
        [_annotated(Literal[Mood.GOOD])],
        [_annotated("not valid !!")],
        [_annotated({})],
        [_annotated("int.foo")],
        [_annotated([])],
        [later],
        [Later()],
    ],
)
def test_tools_that_cannot_work(bundle: Bundle, tools: Any) -> None:
    with pytest.raises(Error, match="tool"):
        Chat(bundle, tools=tools)
