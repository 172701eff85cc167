"""Ids equal the tokenizer library's where nothing is special, and nothing untrusted ever is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import BundleError
from edge_sdk.tokenizer import TextStream, Tokenizer
from tests import speech_goldens

DEFINITION = (speech_goldens.CHECKPOINT / "tokenizer.json").read_text()
TOKENIZER = Tokenizer(DEFINITION)
SPECIAL = [*TOKENIZER.added_ids, "<|im_", "end|>", "<tool", "\ue000", "\ue001", "\n\n", " ", "é", "我听", "�"]
texts = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL)), max_size=8).map("".join)


def library() -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_str(DEFINITION)


LIBRARY = library()


@given(texts)
def test_a_trusted_text_encodes_as_the_library_does(text: str) -> None:
    assert TOKENIZER.encode(text) == LIBRARY.encode(text, add_special_tokens=False).ids


@given(texts, texts, texts)
def test_disarmed_text_has_no_special_ids_and_stays_the_same_text(before: str, text: str, after: str) -> None:
    guard = TOKENIZER.guard_for([before, text, after])
    ids = TOKENIZER.encode(TOKENIZER.disarm(text, guard), guard)
    assert not set(ids) & set(TOKENIZER.added_ids.values())
    assert TOKENIZER.decode(ids, skip_special=False) == LIBRARY.normalizer.normalize_str(text)


@given(texts)
def test_byte_pairs_merge_across_the_border_as_in_one_text(text: str) -> None:
    """Upstream encodes `user\\n` and what follows as one run; so must we, when nothing in it is special."""
    if any(name in text for name in TOKENIZER.added_ids):
        return
    frame = "<|im_start|>user\n"
    guard = TOKENIZER.guard_for([text])
    ids = TOKENIZER.encode(frame + TOKENIZER.disarm(text, guard) + "<|im_end|>\n", guard)
    assert ids == LIBRARY.encode(frame + text + "<|im_end|>\n", add_special_tokens=False).ids


@given(st.lists(st.integers(0, 1000), max_size=60))
def test_streamed_text_equals_the_librarys(ids: list[int]) -> None:
    """Any ids: half characters, special tokens between their bytes, ids that do not exist."""
    stream = TextStream(TOKENIZER)
    streamed = "".join(stream.push(i) for i in ids) + stream.finish()
    assert streamed == LIBRARY.decode(ids, skip_special_tokens=True)
    assert TOKENIZER.decode(ids, skip_special=False) == LIBRARY.decode(ids, skip_special_tokens=False)


def test_half_a_character_waits() -> None:
    ids = TOKENIZER.encode_plain("€")
    stream = TextStream(TOKENIZER)
    if len(ids) > 1:
        assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["€"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: "not json", "not a usable"),
        (lambda v: json.dumps({**v, "decoder": {"type": "WordPiece"}}), "byte-level BPE"),
        (lambda v: json.dumps({**v, "added_tokens": [{**v["added_tokens"][0], "lstrip": True}]}), "strip spaces"),
        (lambda v: json.dumps({k: x for k, x in v.items() if k != "added_tokens"}), "added_tokens"),
    ],
)
def test_unsupported_tokenizers_are_refused(change: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer(change(json.loads(DEFINITION)))
