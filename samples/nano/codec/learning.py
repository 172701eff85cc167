"""What the codec's three training commands share: their options, their schedule, and a look at what was held out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_sdk.errors import Error
from samples.nano import arguments
from samples.nano.codec.crops import Crops, Item
from samples.nano.codec.speech import HELD_OUT, TRAIN, Utterance, replies
from samples.nano.settings import Schedule, Settings
from samples.nano.training import add_training_arguments, train
from samples.nano.training_data import to_device

RUN = "run"  # folder of a training's state, below that of its model
_HELD_OUT_BATCHES = 8


def add_training(parser: argparse.ArgumentParser, schedule: Schedule, rows: int) -> None:
    """`rows`: pieces in a batch."""
    add_training_arguments(parser)
    parser.add_argument("--steps", type=int, default=schedule.steps, help="of the schedule (default: %(default)s)")
    parser.add_argument("--rows", type=arguments.rows, default=rows, help="pieces in a batch (default: %(default)s)")


def add_going_on(parser: argparse.ArgumentParser, schedule: Schedule) -> None:
    """For a part that can begin with what was trained before."""
    parser.add_argument("--source", type=Path, help="folder of a trained one to go on from (default: fresh weights)")
    parser.add_argument("--muon", action="store_true", help="Muon for the layers' matrices (default: AdamW for all)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=schedule.learning_rate,
        help="at its highest (default: %(default)s)",
    )


def learn(
    options: argparse.Namespace,
    model: nn.Module,
    items: Callable[[Iterable[Utterance], str], list[Item]],
    frames: int,
    batch: Callable[[Crops, int], Any],
    loss: Callable[[Any, Any], Any],
    schedule: Schedule,
    folder: Path,
) -> None:
    """Train on the replies of the training split, then say what the loss is on those held out, if there are any.

    Args:
        items: what is learnt from, of the utterances of a split; they come one by one, since all would be twice as
            large as what is kept of them.
        frames: of a piece.
        batch: a step's batch from its pieces.
    """
    settings: Settings = options.settings
    schedule = dataclasses.replace(schedule, steps=options.steps)
    train_on, held_out = (items(replies(options.work, settings.sound, split), split) for split in (TRAIN, HELD_OUT))
    if not train_on:
        raise Error("no reply of the training split is rendered: run python -m samples.nano render first")
    crops = Crops(train_on, settings.sound, options.rows, frames, settings.seed)
    result = train(
        model,
        loss,
        lambda step: batch(crops, step),
        schedule,
        folder / RUN,
        minutes=options.minutes,
        seed=settings.seed,
        device=options.device,
        about=folder.name,
    )
    print(f"{folder.name}: step {result.step} of {result.steps}, loss {result.loss:.4g}")
    if held_out:
        other = Crops(held_out, settings.sound, options.rows, frames, settings.seed)
        found = held_out_loss(model.eval(), loss, [batch(other, step) for step in range(_HELD_OUT_BATCHES)])
        print(f"{folder.name}: held out: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    model.cpu().eval()


@torch.no_grad()
def held_out_loss(model: nn.Module, loss: Callable[[Any, Any], Any], batches: list[Any]) -> dict[str, float]:
    """Means over the batches of the loss and its parts, always with the same random numbers."""
    device = next(model.parameters()).device
    sums: dict[str, float] = {}
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        found = loss(model, to_device(batch, device))
        value, parts = found if isinstance(found, tuple) else (found, {})
        for name, part in {"loss": value, **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(part) / len(batches)
    return sums
