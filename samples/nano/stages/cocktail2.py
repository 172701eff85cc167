"""Core-Cocktail, stage 2: the merged model goes on, everything trained at a low learning rate."""

from __future__ import annotations

import argparse

from samples.nano.settings import Schedule
from samples.nano.stages import speaking
from samples.nano.stages import stage as stages

STAGE = stages.Stage(
    name="cocktail2",
    source="merged",
    trains=stages.ALL,
    schedules={
        "nano": Schedule(steps=10000, learning_rate=5e-5, warmup_steps=300),
        "tiny": Schedule(steps=200, learning_rate=5e-4, warmup_steps=10),
    },
    batch={"nano": 64, "tiny": 8},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    speaking.add_arguments(parser, STAGE)


def run(options: argparse.Namespace) -> int:
    return speaking.run(options, STAGE)
