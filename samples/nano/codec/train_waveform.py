"""Trains the waveform part, vocoder mel -> 24 kHz PCM, by spectral losses; its f0 predictor by the synthesizer's f0.

`render` comes before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial

import torch

from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.files import save_model
from samples.nano.codec.folders import WAVEFORM
from samples.nano.codec.learning import add_training, learn
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.speech import Utterance
from samples.nano.codec.waveform import Waveform
from samples.nano.codec.waveform_loss import waveform_loss
from samples.nano.codec.waveform_start import begin
from samples.nano.settings import Schedule, Settings

SCHEDULE = Schedule(steps=60000, learning_rate=1e-3, warmup_steps=100, betas=(0.8, 0.99))
FRAMES = 25  # of a piece: 0.5 s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=8)


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    folder = options.work / WAVEFORM
    torch.manual_seed(settings.seed)
    model = begin(Waveform(vocoder_sizes(settings.vocoder_spec())))

    def items(utterances: Iterable[Utterance], split: str) -> list[Item]:
        # Elsewhere the phase of the synthesizer's pulses is not known.
        return prepare((u for u in utterances if len(u.curve)), settings.sound, with_turns=True)

    learn(options, model, items, FRAMES, Crops.wave, partial(waveform_loss, sound=settings.sound), SCHEDULE, folder)
    save_model(folder, WAVEFORM, model, {"name": settings.name})
    return 0
