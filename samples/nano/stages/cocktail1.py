"""Core-Cocktail, stage 1: everything is trained, at a high learning rate."""

from __future__ import annotations

import argparse

from samples.nano.settings import Schedule
from samples.nano.stages import speaking
from samples.nano.stages import stage as stages

STAGE = stages.Stage(
    name="cocktail1",
    source="prealign",
    trains=stages.ALL,
    schedules={
        "nano": Schedule(steps=20000, learning_rate=5e-4, warmup_steps=300),
        "tiny": Schedule(steps=200, learning_rate=3e-3, warmup_steps=10),
    },
    batch={"nano": 64, "tiny": 8},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    speaking.add_arguments(parser, STAGE)


def run(options: argparse.Namespace) -> int:
    return speaking.run(options, STAGE)
