"""The random checkpoints' tokenizers: they round-trip, their ids are where the spec says, their files agree."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge_sdk.export.random_checkpoint import PRESETS, SpeechIdSpec
from edge_sdk.export.random_checkpoint.specs import ADDED_TOKENS, LanguageSpec
from edge_sdk.export.random_checkpoint.tokenizer import train, write_speech_tokenizer, write_text_tokenizer

KNOWN_MERGES = "3714e3f48576408bc2fb4c1c9c7fda8cba19cd99c2aeb2eba1e3ca99a2bab62b"
MOST = 1629  # tokens that the corpus can fill
PLAIN_TAGS = {"<tool_call>", "</tool_call>", "<think>", "</think>"}


def spec_of(preset: str) -> LanguageSpec:
    spec = PRESETS[preset].language
    assert spec is not None
    return spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_text_tokenizer(path, spec_of("tiny"))
    write_speech_tokenizer(path / "speech_tokenizer", SpeechIdSpec(real=200, bos=202, eos=203, pad=200), 4)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_training_gives_the_same_merges_everywhere() -> None:
    """Known answer: another version of the trainer that decides otherwise is found here."""
    vocab, merges = train(936)
    text = json.dumps([vocab, merges])
    assert hashlib.sha256(text.encode()).hexdigest() == KNOWN_MERGES
    assert (len(vocab), len(merges)) == (936, 680)


@pytest.mark.parametrize("size", [256, 257, 600, 1700, 5000])
def test_any_size_is_filled_to_the_last_id(size: int) -> None:
    vocab, merges = train(size)
    assert sorted(vocab.values()) == list(range(size))
    assert (vocab["!"], vocab["Ġ"], vocab["Ń"]) == (0, 220, 255)  # the bytes, in GPT-2's order
    assert len(merges) == min(size, MOST) - 256
    for left, right in merges:
        assert vocab[left + right] > max(vocab[left], vocab[right])


@given(text=st.text(max_size=60))
def test_any_text_round_trips_in_its_composed_form(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text).ids
    if not any(content in text for content, _ in ADDED_TOKENS):
        assert all(i < 936 for i in ids)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", ["Good morning, what's new?", "打开厨房的灯。", " 12:30\n\n  x\t", "😀 naïve e\u0301"])
def test_known_text_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFC", text)


def test_words_of_the_corpus_are_single_tokens_and_digits_stay_alone(tokenizer: Any) -> None:
    assert tokenizer.encode(" the").tokens == ["Ġthe"]
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    assert tokenizer.encode("it's").tokens[-1] == "'s"


def test_added_tokens_follow_the_vocabulary(tokenizer: Any) -> None:
    for offset, (content, special) in enumerate(ADDED_TOKENS):
        assert tokenizer.token_to_id(content) == 936 + offset
        assert tokenizer.encode(f"a{content}b").ids[1] == 936 + offset
        assert special == (content not in PLAIN_TAGS)
    assert tokenizer.get_vocab_size() == 948
    text = "<think>no</think><|im_end|><tool_call>{}</tool_call><|sil|>"
    assert tokenizer.decode(tokenizer.encode(text).ids) == "<think>no</think><tool_call>{}</tool_call>"


def test_the_files_agree_with_each_other(folder: Path) -> None:
    files = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    model = files["tokenizer.json"]["model"]
    assert files["vocab.json"] == model["vocab"]
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#version: 0.2"
    assert [line.split(" ") for line in lines[1:]] == model["merges"]
    added = files["tokenizer.json"]["added_tokens"]
    assert [t["id"] for t in added] == list(range(936, 948))
    assert files["added_tokens.json"] == {t["content"]: t["id"] for t in added}
    decoder = files["tokenizer_config.json"]["added_tokens_decoder"]
    assert {int(i): t["content"] for i, t in decoder.items()} == {t["id"]: t["content"] for t in added}
    assert {t["content"] for t in added if not t["special"]} == PLAIN_TAGS
    assert files["special_tokens_map.json"]["eos_token"]["content"] == "<|im_end|>"
    assert files["tokenizer.json"]["normalizer"] == {"type": "NFC"}


def test_the_8b_tokenizer_has_every_id_of_the_released_one(tmp_path: Path) -> None:
    write_text_tokenizer(tmp_path, spec_of("8b"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 151674
    names = {151645: "<|im_end|>", 151657: "<tool_call>", 151665: "<tool_response>", 151669: "<|AUDIO|>"}
    assert {i: tokenizer.id_to_token(i) for i in names} == names
    assert max(tokenizer.encode("Good morning, 早上好").ids) < 256 + MOST


def test_codes_are_words(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "speech_tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode("<|audio_bos|>[AU0000][AU0199]<|audio_pad|><|audio_eos|><|audio_unk|>").ids
    assert ids == [202, 0, 199, 200, 203, 201]
    assert tokenizer.encode("[AU0200]").ids == [201]  # there is no such code
    assert tokenizer.decode([7, 8]) == "[AU0007][AU0008]"
    config = json.loads((folder / "speech_tokenizer" / "tokenizer_config.json").read_text())
    assert config["audio_group_size"] == 4
    assert {i: t["content"] for i, t in config["added_tokens_decoder"].items()} == {
        "200": "<|audio_pad|>",
        "201": "<|audio_unk|>",
        "202": "<|audio_bos|>",
        "203": "<|audio_eos|>",
    }
