"""Multi-task DPO: noise, instructions, tool calls; over text and speech of each reply, against a frozen copy."""

from __future__ import annotations

import argparse
from functools import partial

from edge_sdk.errors import Error
from samples.nano.arguments import weight
from samples.nano.devices import device_of
from samples.nano.model.checkpoint import load
from samples.nano.settings import Schedule
from samples.nano.stages import stage as stages
from samples.nano.stages.loss import preference
from samples.nano.stages.pairs import KINDS, preference_batches

STAGE = stages.Stage(
    name="dpo",
    source="cocktail2",
    trains=stages.ALL,
    schedules={
        "nano": Schedule(steps=3000, learning_rate=1e-5, warmup_steps=100),
        "tiny": Schedule(steps=50, learning_rate=1e-4, warmup_steps=5),
    },
    batch={"nano": 32, "tiny": 4},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages.add_arguments(parser, STAGE)
    stages.add_speech_arguments(parser)
    parser.add_argument("--beta", type=weight, default=0.1, help="how far the model may leave its copy (%(default)s)")
    parser.add_argument("--sft-share", type=weight, default=1.0, help="of the chosen replies' cross entropy")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=weight, default=1.0, help=f"share of pairs for {kind}")


def run(options: argparse.Namespace) -> int:
    shares = {kind: getattr(options, kind) for kind in KINDS}
    if not any(shares.values()):
        raise Error(f"of the shares of pairs one must be above 0; found {shares}")
    loaded = stages.open_source(options, STAGE)
    reference = load(stages.source_of(options, STAGE)).model.to(device_of(options.device))
    if options.compile:  # rounded as the policy is: they begin as one
        stages.fuse(reference)
    corpus = stages.corpus_of(options, loaded, ("train",), stages.sounds_of(options), stages.layout_of(options))
    batches = preference_batches(corpus, max(1, stages.batch_of(options, STAGE) // 2), stages.seed_of(options), shares)
    loss = partial(
        preference,
        reference=reference,
        beta=options.beta,
        speech_share=options.speech_share,
        sft_share=options.sft_share,
    )
    return stages.train(options, STAGE, loaded, batches, loss)
