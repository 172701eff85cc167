"""Pre-alignment: adapter, grouping and speech head learn to fit a backbone and an encoder that stay as they are."""

from __future__ import annotations

import argparse

from samples.nano.settings import Schedule
from samples.nano.stages import speaking
from samples.nano.stages import stage as stages

STAGE = stages.Stage(
    name="prealign",
    source="text",
    trains=stages.ADAPTER_AND_HEAD,
    schedules={
        "nano": Schedule(steps=10000, learning_rate=1e-3, warmup_steps=300),
        "tiny": Schedule(steps=200, learning_rate=3e-3, warmup_steps=10),
    },
    batch={"nano": 64, "tiny": 8},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    speaking.add_arguments(parser, STAGE)


def run(options: argparse.Namespace) -> int:
    return speaking.run(options, STAGE)
