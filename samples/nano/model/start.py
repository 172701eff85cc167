"""The checkpoint that training begins with: drawn backbone and speech head, Whisper tiny.en's encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from samples.nano.model.fresh import write_fresh
from samples.nano.settings import NANO
from samples.nano.voices.packages import WHISPER_TINY_EN, model_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", type=Path, help="folder of the text tokenizer (default: WORK/tokenizer)")
    parser.add_argument(
        "--encoder",
        choices=("whisper", "random"),
        help="default: whisper where the sizes are tiny.en's (all presets but tiny), else random",
    )
    parser.add_argument("-o", "--output", type=Path, help="default: WORK/start")


def run(options: argparse.Namespace) -> int:
    settings = options.settings
    tokenizer, output = options.tokenizer or options.work / "tokenizer", options.output or options.work / "start"
    encoder = options.encoder or ("whisper" if settings.encoder == NANO.encoder else "random")
    whisper = model_file(WHISPER_TINY_EN) if encoder == "whisper" else None
    write_fresh(output, settings, tokenizer, whisper=whisper, seed=settings.seed)
    print(f"wrote {output} with {'Whisper tiny.en' if whisper else 'a random'} encoder")
    return 0
