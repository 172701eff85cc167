"""The run that pre-alignment and both stages of Core-Cocktail are: spoken questions, spoken replies, cross entropy."""

from __future__ import annotations

import argparse
from functools import partial

from samples.nano.stages import stage as stages
from samples.nano.stages.data import speech_batches
from samples.nano.stages.loss import cross_entropy


def add_arguments(parser: argparse.ArgumentParser, stage: stages.Stage) -> None:
    stages.add_arguments(parser, stage)
    stages.add_speech_arguments(parser)
    parser.add_argument("--text-share", type=float, default=0.0, help="of sequences that stay text alone")
    parser.add_argument("--typed-share", type=float, default=0.1, help="of spoken replies that answer text")


def run(options: argparse.Namespace, stage: stages.Stage) -> int:
    loaded = stages.open_source(options, stage)
    corpus = stages.corpus_of(options, loaded, ("train",), stages.sounds_of(options), stages.layout_of(options))
    batches = speech_batches(
        corpus,
        stages.batch_of(options, stage),
        options.settings.seed,
        text_share=options.text_share,
        typed_share=options.typed_share,
    )
    return stages.train(options, stage, loaded, batches, partial(cross_entropy, speech_share=options.speech_share))
