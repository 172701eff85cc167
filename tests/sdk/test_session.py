"""Saved conversations go on token for token, and a damaged file is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError, Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.session import checksum
from edge_sdk.tensorfile import TensorFile, write_tensors
from tests import speech_goldens as goldens

CONFIG = GenerationConfig(max_new_tokens=8, seed=3, text_greedy=False)
OPTIONS: dict[str, Any] = {"generation": CONFIG, "context_tokens": 256}


@pytest.fixture(scope="module")
def bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as opened:
        yield opened


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    with Chat(bundle, system="Be <|sil|> brief.", **OPTIONS) as chat:
        chat.send(str(goldens.recording("syn1p3")), "And this?")
        chat.save(tmp_path / "session.bin")
    return tmp_path / "session.bin"


def test_a_restored_chat_goes_on_as_if_nothing_had_happened(bundle: Bundle, saved: Path) -> None:
    with Chat(bundle, system="Be <|sil|> brief.", **OPTIONS) as chat:
        chat.send(str(goldens.recording("syn1p3")), "And this?")
        expected, history = chat.send(text="Go on."), chat.history
    with Chat.restore(bundle, saved, **OPTIONS) as chat:
        reply = chat.send(text="Go on.")
        assert (reply.text_ids, reply.speech_ids) == (expected.text_ids, expected.speech_ids)
        assert chat.history == history


def test_restore_opens_a_bundle_by_path_and_takes_other_options(speech_bundle_path: Path, saved: Path) -> None:
    with Chat.restore(str(speech_bundle_path), saved, system="Other.", **OPTIONS) as chat:
        assert "Other." in chat._tokenizer.decode(chat._conversation.render().ids.tolist())
        assert len(chat.history) == 2


def test_another_bundle_is_refused(saved: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "digest", "0" * 64)
    with pytest.raises(BundleError, match="was saved with bundle"):
        Chat.restore(bundle, saved)


def _rewrite(path: Path, change: Any, arrays: Any = None) -> None:
    file = TensorFile(path)
    header = json.loads(file.metadata["session"])
    tensors = {name: file.read(name) for name in file}
    file.close()
    change(header)
    text, tensors = json.dumps(header), arrays(tensors) if arrays else tensors
    with path.open("wb") as out:
        write_tensors(out, tensors, {"session": text, "sha256": checksum(text, tensors)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format="x"), "not a saved session"),
        (lambda h: h.update(format_version=2), "format version 2"),
        (lambda h: h.update(generations=-1), "generation count"),
        (lambda h: h.update(generations=True), "generation count"),
        (lambda h: h.update(options={"tools": "x"}), "options"),
        (lambda h: h.update(options={"system": 3, "speech": True}), "options"),
        (lambda h: h.update(turns={}), "list of turns"),
        (lambda h: h["turns"][0].update(role="system"), "malformed"),
        (lambda h: h["turns"][0].update(text=None), "malformed"),
        (lambda h: h["turns"][0].pop("said"), "malformed"),
        (lambda h: h["turns"][0].update(said=[3]), "malformed"),
        (lambda h: h["turns"][0].update(said=[{"id": "1", "name": "x", "arguments": 3, "raw": ""}]), "malformed"),
        (lambda h: h["turns"][1].update(clip_s=1.0), "malformed"),
        (lambda h: h["turns"][0].update(clip_s="long"), "malformed"),
        (lambda h: h["turns"][0].update(clip_s=10**400), "malformed"),
        (lambda h: h["turns"][0].update(clip_s=-1), "malformed"),
        (lambda h: h["turns"][0].update(clip_s=float("nan")), "malformed"),
        (lambda h: h["turns"][0].update(text="\ud83d"), "lone surrogate"),
    ],
)
def test_damaged_sessions_are_refused(bundle: Bundle, saved: Path, change: Any, message: str) -> None:
    _rewrite(saved, change)
    with pytest.raises(Error, match=message):
        Chat.restore(bundle, saved)


@pytest.mark.parametrize(
    "arrays",
    [
        lambda t: {},
        lambda t: {n: a.astype(np.float64) for n, a in t.items()},
        lambda t: {n: a[:, :-1].copy() for n, a in t.items()},
        lambda t: {n: a * np.nan for n, a in t.items()},
    ],
)
def test_damaged_rows_are_refused(bundle: Bundle, saved: Path, arrays: Any) -> None:
    _rewrite(saved, lambda h: None, arrays)
    with pytest.raises(Error, match="audio rows"):
        Chat.restore(bundle, saved)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found(bundle: Bundle, saved: Path, tmp_path: Path, data: Any) -> None:
    """In the header and in the rows: a wrong word or number would be answered as if it had been said."""
    content = bytearray(saved.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at = data.draw(st.one_of(st.integers(0, min(len(content), 1200) - 1), st.integers(0, len(content) - 1)))
        content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.bin"
    path.write_bytes(content)
    if _content(path) == _content(saved):
        return  # white space between the parts of the outer header
    with pytest.raises(Error):
        Chat.restore(bundle, path, **OPTIONS)


def _content(path: Path) -> Any:
    try:
        file = TensorFile(path)
    except Error:
        return None
    return file.metadata, {name: (file.entries[name].dtype, file.read(name).tobytes()) for name in file}


def test_files_that_cannot_be_read_or_written(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Error, match="cannot open"):
        Chat.restore(bundle, tmp_path / "none.bin")
    with Chat(bundle, **OPTIONS) as chat:
        with pytest.raises(Error, match="cannot write"):
            chat.save(tmp_path / "no" / "folder" / "x.bin")
        (tmp_path / "folder").mkdir()
        with pytest.raises(Error, match="cannot write"):
            chat.save(tmp_path / "folder")
        assert not list(tmp_path.glob(".*"))
