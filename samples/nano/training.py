"""The one trainer of the recipe: warm-up and cosine, limited in time, taken up at the exact step.

A step is told by the weights, the optimizers' state, the seed and its number alone: the batch comes from
`batches(step)`, torch's random numbers are seeded anew for it. So a run that was interrupted ends, on a CPU and with as
many threads, with the same weights to the bit as one that was not.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.commands.output import progress
from edge_sdk.errors import Error
from edge_sdk.keyboard import ends_with, terminated_by
from samples.nano import arguments
from samples.nano.devices import device_of, multiplies_bfloat16
from samples.nano.optimizers import Optimizers, make_optimizers
from samples.nano.settings import Schedule
from samples.nano.training_data import numbers, to_device
from samples.nano.training_log import LOG, Clock, Log
from samples.nano.training_state import restore, save

_LOG_EVERY = 20

Batches = Callable[[int], Any]  # step -> batch: tensors, or dicts, lists and tuples of them
# The mean to make small, alone or with other numbers that belong in the log.
Loss = Callable[[Any, Any], "Tensor | tuple[Tensor, Mapping[str, Tensor]]"]


@dataclass(frozen=True)
class Trained:
    """How far a run got: `step` of `steps`, and the mean loss since the last line of the log."""

    step: int
    steps: int
    loss: float

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


def train(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    folder: Path,
    *,
    minutes: float | None = None,
    stop_at: int | None = None,
    seed: int = 1,
    device: str | None = None,
    about: str = "training",
    log_every: int = _LOG_EVERY,
) -> Trained:
    """Train to the schedule's end, or as far as `minutes` go; what `folder` holds of the same run is taken up.

    Args:
        model: trained where it requires gradients; it is left on the device, with its last weights.
        loss: called as loss(model, batch), under bfloat16 autocast where the device multiplies it faster.
        batches: the batch of a step, told by its number alone (see `numbers`); called one step ahead, in a thread.
        stop_at: leave the run after this many steps in all, as if time had run out.
        about: name on the progress line.

    Raises:
        Error: the loss or a gradient is no finite number, `folder` belongs to another run, or there is no such device.
        KeyboardInterrupt: after Ctrl-C, when the step has ended and was saved.
    """
    if schedule.steps < 1:
        raise Error(f"a run has at least 1 step, found {schedule.steps}")
    if not 0 <= schedule.learning_rate < math.inf:
        raise Error(f"a learning rate is a number from 0 up, found {schedule.learning_rate}")
    where = device_of(device)
    model.to(where).train()
    optimizers = make_optimizers(model, schedule)
    run = {**dataclasses.asdict(schedule), "seed": seed}
    if not schedule.muon:
        run = {key: value for key, value in run.items() if not key.startswith("muon")}
    run = {**run, "slow": list(schedule.slow)} if schedule.slow else {k: v for k, v in run.items() if "slow" not in k}
    step = restore(folder, model, optimizers, run) or 0
    folder.mkdir(parents=True, exist_ok=True)
    end = min(schedule.steps, schedule.steps if stop_at is None else stop_at)
    log, clock, stop = Log(folder / LOG, step, log_every), Clock(minutes), threading.Event()
    show = progress()
    saved = step
    with ends_with(stop.set), terminated_by(stop.set), ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batches, step) if step < end else None
        while coming and not stop.is_set() and not clock.is_over():
            batch = to_device(coming.result(), where)
            coming = ahead.submit(batches, step + 1) if step + 1 < end else None
            values = _take_step(model, optimizers, loss, batch, schedule, step, seed, where)
            step += 1
            log.add(step, values)
            clock.step_done()
            show(f"{about}: {step} of {schedule.steps}, {values['loss']:.4g}", step, schedule.steps)
            if clock.wants_save():
                save(folder, step, model, optimizers, run)
                saved = step
        if saved < step:
            save(folder, step, model, optimizers, run)
        log.write()
    if step < schedule.steps and sys.stderr.isatty():
        sys.stderr.write("\n")  # of the progress line, which ends itself at 100 %
    return Trained(step, schedule.steps, log.mean)


def learning_rate(schedule: Schedule, step: int) -> float:
    """Of step 0, 1, ...: up in a straight line, then down along half a cosine to `final_share`."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    past = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    share = schedule.final_share + (1 - schedule.final_share) * (1 + math.cos(math.pi * min(past, 1.0))) / 2
    return schedule.learning_rate * share


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes."""
    parser.add_argument(
        "--minutes", type=arguments.minutes, help="stop after so long; the same command goes on (default: no limit)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def _take_step(
    model: nn.Module,
    optimizers: Optimizers,
    loss: Loss,
    batch: Any,
    schedule: Schedule,
    step: int,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """One step; its numbers for the log. Nothing is changed if one is not finite."""
    torch.manual_seed(int(numbers(seed, step, "torch").integers(2**63)))
    rate = learning_rate(schedule, step)
    optimizers.set_learning_rate(rate)
    optimizers.zero_grad()
    with torch.autocast(device.type, torch.bfloat16) if multiplies_bfloat16(device) else nullcontext():
        result = loss(model, batch)
    value, others = result if isinstance(result, tuple) else (result, {})
    value.backward()
    norm = nn.utils.clip_grad_norm_(list(optimizers.parameters), schedule.clip_norm)
    found = {"loss": value, "gradient_norm": norm, **others}
    # One copy from the device: each would wait for it.
    values = torch.stack([v.detach().float().reshape(()) for v in found.values()]).tolist()
    out = dict(zip(found, values, strict=True))
    if not (math.isfinite(out["loss"]) and math.isfinite(out["gradient_norm"])):
        raise Error(
            f"step {step}: the loss is {out['loss']}, the gradient's norm {out['gradient_norm']}; the last save is "
            "kept: look at this step's data, or give a smaller learning rate"
        )
    optimizers.step()
    return {**out, "learning_rate": rate}
