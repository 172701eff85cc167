"""Encodes every rendered reply with the trained speech tokenizer: what the speech head learns to say.

    codes = reply_codes(work, settings)
    codes["It is five."]            # int64 [T], 25 a second

What was encoded by the same tokenizer is kept; another one's codes are made anew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from samples.nano import arguments
from samples.nano.codec.files import digest
from samples.nano.codec.folders import CODEC, CODES
from samples.nano.codec.speech import Utterance, replies
from samples.nano.codec.store import CodeStore
from samples.nano.codec.tokenizer import MODEL_NAME, Tokenizer
from samples.nano.settings import Settings

Array = np.ndarray[Any, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=arguments.minutes, help="stop after so many (default: when all is encoded)")


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    tokenizer = load_tokenizer(options.work, settings)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes

    def codes(utterance: Utterance) -> Array:
        return tokenizer.codes(utterance.pcm, utterance.f0_hz)

    done = code_store(options.work).fill(
        replies(options.work, settings.sound), codes, lambda: end is None or time.monotonic() < end
    )
    if not done:
        print("stopped before all replies were encoded: run it again to go on")
        return 0
    found = reply_codes(options.work, settings)
    used = np.unique(np.concatenate(list(found.values())))
    total = sum(map(len, found.values()))
    print(f"{len(found)} replies, {total} codes, {len(used)} of {tokenizer.quantizer.codes} different ones used")
    return 0


def load_tokenizer(work: Path, settings: Settings) -> Tokenizer:
    """Raises Error if it is not trained yet."""
    return Tokenizer.load(work / CODEC, settings.sound)


def codec_digest(work: Path) -> str:
    """Of the trained speech tokenizer: codes of another one mean other sounds. "" where there is none."""
    path = work / CODEC / f"{MODEL_NAME}.safetensors"
    return digest(path) if path.is_file() else ""


def code_store(work: Path) -> CodeStore:
    return CodeStore(work / CODES, codec_digest(work))


def reply_codes(work: Path, settings: Settings) -> dict[str, Array]:
    """Codes of every rendered reply, text -> int64 [T]. Raises Error if some are missing."""
    load_tokenizer(work, settings)  # says what is missing, or of other sizes
    return code_store(work).read()
