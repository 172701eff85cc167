"""Trains the text tokenizer (byte-level BPE of about 4 k) and writes both tokenizers of a checkpoint.

The files are those that the checkpoint's folder holds: copy them there as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error
from edge_sdk.export.random_checkpoint.specs import LanguageSpec
from edge_sdk.export.random_checkpoint.tokenizer import train, write_speech_tokenizer, write_text_tokenizer
from edge_sdk.tokenizer import Tokenizer
from samples.nano.settings import Settings
from samples.nano.texts.corpus import corpus
from samples.nano.texts.store import read_dialogues

_BYTES = 256

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--texts", type=Path, help="folder of the texts (default: texts in the work folder)")
    parser.add_argument("--out", type=Path, help="folder to write (default: tokenizer in the work folder)")
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON")


def run(options: argparse.Namespace) -> int:
    texts = options.texts or options.work / "texts"
    folder = options.out or options.work / "tokenizer"
    spec = write_tokenizers(folder, options.settings, corpus(texts))
    report = {"text_tokens": spec.text_tokens, "vocab_size": spec.vocab_size, **_lengths(folder, texts)}
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name.replace('_', ' '):<32}{value:>10}" for name, value in report.items()))
        print(f"written to {folder}")
    return 0


def write_tokenizers(folder: Path, settings: Settings, texts: list[str]) -> LanguageSpec:
    """Write text and speech tokenizer; returns the sizes that fit them: no token is there that was not learned.

    Raises:
        Error: the folder holds something else, which would be lost.
    """
    if folder.name in ("", ".."):
        raise Error(f"'{folder}' cannot be a tokenizer's folder; give the path of one to make")
    _, merges = train(settings.text_tokens, texts)
    spec = settings.language_spec(min(settings.text_tokens, _BYTES + len(merges)))
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_text_tokenizer(part, spec, texts)
    shutil.copyfile(TEMPLATE, part / TEMPLATE.name)
    write_speech_tokenizer(part / "speech_tokenizer", spec.speech, spec.group_size)
    if folder.exists():
        strange = sorted({p.name for p in folder.iterdir()} - {p.name for p in part.iterdir()})
        if strange:
            shutil.rmtree(part)
            told = ", ".join(strange[:3])
            raise Error(f"'{folder}' also holds what is no tokenizer's, so it is not replaced: {told}")
        shutil.rmtree(folder)
    part.replace(folder)
    return spec


def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), str(folder / "tokenizer.json"))


def _lengths(folder: Path, texts: Path) -> dict[str, Any]:
    """How long what is held out gets, in ids."""
    tokenizer = read_tokenizer(folder)
    replies = [len(tokenizer.encode_plain(text)) for text in _replies(texts)]
    words = [len(text.split()) for text in _replies(texts)]
    return {
        "held_out_replies": len(replies),
        "ids_a_reply_mean": round(sum(replies) / len(replies), 2),
        "ids_a_reply_most": max(replies),
        "ids_a_word": round(sum(replies) / sum(words), 3),
    }


def _replies(texts: Path) -> Iterator[str]:
    for dialogue in read_dialogues(texts / "held_out.jsonl"):
        yield from (turn.text for turn in dialogue.turns if turn.role == "assistant" and turn.text)
