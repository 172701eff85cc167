"""The text tokenizer (byte-level BPE in Qwen2's manner) and the codebook's, with all their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from edge_sdk.export.random_checkpoint.corpus import TEXT
from edge_sdk.export.random_checkpoint.draws import Array
from edge_sdk.export.random_checkpoint.specs import LanguageSpec, SpeechIdSpec
from edge_sdk.export.random_checkpoint.writer import write_json

# Qwen2's words: contractions, letters with one leading sign, single digits, signs, line ends, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
_EOS, _PAD = "<|im_end|>", "<|endoftext|>"
_QUIET = 0.02  # size of a text-head row that should never be picked, against the others' 1


def write_text_tokenizer(folder: Path, spec: LanguageSpec, corpus: Sequence[str] = (TEXT,)) -> None:
    """Train on the corpus and write every tokenizer file of a Hugging Face folder, and the chat template."""
    vocab, merges = train(spec.text_tokens, corpus)
    added = [_added(spec.text_tokens + i, content, special) for i, (content, special) in enumerate(spec.added_tokens)]
    write_json(folder / "tokenizer.json", _tokenizer_json(vocab, merges, added))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(added))
    write_json(folder / "vocab.json", vocab)
    write_json(folder / "added_tokens.json", {t["content"]: t["id"] for t in sorted(added, key=lambda t: t["content"])})
    write_json(folder / "special_tokens_map.json", _special_tokens())
    text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_speech_tokenizer(folder: Path, speech: SpeechIdSpec, group_size: int) -> None:
    """The codebook as a tokenizer: codes are the words [AU0000], [AU0001], ..."""
    names = {
        "<|audio_bos|>": speech.bos,
        "<|audio_eos|>": speech.eos,
        "<|audio_pad|>": speech.pad,
        "<|audio_unk|>": speech.unk,
    }
    added = [_added(i, content, True) for content, i in sorted(names.items(), key=lambda item: item[1])]
    special = {"bos_token": "<|audio_bos|>", "eos_token": "<|audio_eos|>"}
    special |= {"pad_token": "<|audio_pad|>", "unk_token": "<|audio_unk|>"}
    folder.mkdir()
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": _decoder_entries(added),
            "audio_group_size": group_size,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {},
            "model_max_length": 1000000,
            "padding_side": "right",
            "tokenizer_class": "PreTrainedTokenizer",
            **special,
        },
    )
    write_json(folder / "special_tokens_map.json", special)
    codes = {f"[AU{i:04}]": i for i in range(speech.real)}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": _split(r"\[AU\d{4,}\]|<\|[a-z_]+\|>"),
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": {**codes, **names}, "unk_token": "<|audio_unk|>"},
        },
    )


def train(size: int, corpus: Sequence[str] = (TEXT,)) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary of `size` tokens, merges) of the corpus. Past what the corpus can fill, tokens are never produced."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = _model_of(tokenizer)
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    for i in range(len(vocab), size):
        vocab[f"[unused{i}]"] = i
    return vocab, [(left, right) for left, right in model["merges"]]


def text_head_gains(folder: Path, spec: LanguageSpec) -> Array:
    """How large each row of the text head is, float32 [vocab_size]: none past the tokenizer, eos as the spec says."""
    gains = np.zeros(spec.vocab_size, np.float32)
    gains[: spec.text_tokens + len(spec.added_tokens)] = 1.0
    if spec.readable:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for i in range(spec.text_tokens):
            if not _reads_well(tokenizer.decode([i])):
                gains[i] = _QUIET
        gains[spec.text_tokens : spec.text_tokens + len(spec.added_tokens)] = _QUIET
    gains[spec.token_id(_EOS)] = spec.text_eos_gain
    return gains


def _reads_well(text: str) -> bool:
    return text in ".,?!" or (
        text.isprintable() and "\ufffd" not in text and text.strip(" ").isalpha() and len(text) > 1
    )


def _model_of(tokenizer: Any) -> Any:
    return json.loads(tokenizer.to_str())["model"]


def _added(number: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **flags, "special": special}


def _decoder_entries(added: list[dict[str, Any]]) -> dict[str, Any]:
    return {str(t["id"]): {key: t[key] for key in sorted(t) if key != "id"} for t in added}


def _special_tokens() -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "eos_token": {"content": _EOS, **flags},
        "pad_token": {"content": _PAD, **flags},
    }


def _tokenizer_config(added: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": _decoder_entries(added),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": _EOS,
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": 131072,
        "pad_token": _PAD,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _tokenizer_json(
    vocab: dict[str, int], merges: list[tuple[str, str]], added: list[dict[str, Any]]
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split(WORDS), byte_level]},
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
