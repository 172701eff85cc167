"""Trains the speech tokenizer on the spoken replies: encoder, quantizer, and a decoder that only training needs.

`render` comes before it, `encode` after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.folders import CODEC
from samples.nano.codec.learning import add_training, learn
from samples.nano.codec.speech import Utterance
from samples.nano.codec.tokenizer import Tokenizer, tokenizer_loss
from samples.nano.settings import Schedule, Settings

SCHEDULE = Schedule(steps=20000, learning_rate=1e-3, warmup_steps=100, betas=(0.8, 0.99))
FRAMES = 100  # of a piece: 2 s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=16)


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    folder = options.work / CODEC
    torch.manual_seed(settings.seed)
    model = Tokenizer(settings.codec, settings.sound)

    def items(utterances: Iterable[Utterance], split: str) -> list[Item]:
        return prepare(utterances, settings.sound)

    learn(options, model, items, FRAMES, Crops.sound_of, tokenizer_loss, SCHEDULE, folder)
    model.save(folder, settings)
    return 0
