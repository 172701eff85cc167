"""Trains the backbone on text alone, so that it knows something before it learns to hear and speak."""

from __future__ import annotations

import argparse
from functools import partial

from edge_sdk.errors import Error
from samples.nano.arguments import share, weight
from samples.nano.settings import Schedule
from samples.nano.stages import stage as stages
from samples.nano.stages.data import last_replies, story_sequences, text_batches
from samples.nano.stages.drills import copies, figures, words_of
from samples.nano.stages.layout import Layout
from samples.nano.stages.loss import text_cross_entropy

STAGE = stages.Stage(
    name="text",
    source="start",
    trains=stages.BACKBONE,
    schedules={
        "nano": Schedule(steps=20000, learning_rate=1e-3, warmup_steps=500),
        "tiny": Schedule(steps=200, learning_rate=3e-3, warmup_steps=10),
    },
    batch={"nano": 64, "tiny": 8},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages.add_arguments(parser, STAGE)
    parser.add_argument("--prompt-weight", type=weight, default=0.3, help="of the prompts' own ids in the loss")
    parser.add_argument("--copy-share", type=share, default=0.0, help="of steps that copy ids drawn at random")
    parser.add_argument("--figures-share", type=share, default=0.0, help="of steps of numbers in words and figures")
    parser.add_argument(
        "--replies-weight",
        type=weight,
        default=0.0,
        help="of earlier replies in a prompt; with it, each dialogue is taken once, to its last reply",
    )
    parser.add_argument("--story-share", type=share, default=0.2, help="of sequences that are running text")


def run(options: argparse.Namespace) -> int:
    drills = options.copy_share + options.figures_share
    if drills > 1 + 1e-9:
        raise Error(f"the shares of drills are no more than 1 together; found {drills:g}")
    loaded = stages.open_source(options, STAGE)
    corpus = stages.corpus_of(options, loaded, ("train", "plain_train"), None, Layout())
    folder = options.texts or options.work / "texts"
    stories = story_sequences(corpus.prompter, folder / "stories.txt") if options.story_share else []
    batches = text_batches(
        corpus,
        stages.batch_of(options, STAGE),
        stages.seed_of(options),
        options.prompt_weight,
        stories=stories,
        story_share=options.story_share,
        copy_share=options.copy_share,
        copies=partial(copies, words_of(corpus)),
        figures_share=options.figures_share,
        figures=partial(figures, corpus.prompter),
        replies_weight=options.replies_weight,
        items=last_replies(corpus.items) if options.replies_weight else None,
    )
    return stages.train(options, STAGE, loaded, batches, text_cross_entropy)
