"""Trains the waveform part a little further, on mels that the flow makes: it is these that it will have to say.

`flow` and `waveform` come before it; what it writes takes the place of what `waveform` wrote.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from edge_sdk.errors import Error
from samples.nano.begun import keep_to
from samples.nano.codec.checkpoint import speaker
from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.encode import reply_codes
from samples.nano.codec.files import digest, save_model
from samples.nano.codec.folders import FLOW, TUNED, WAVEFORM
from samples.nano.codec.learning import RUN, add_training, learn
from samples.nano.codec.resynthesize import flow_mel
from samples.nano.codec.speech import TRAIN, Utterance
from samples.nano.codec.train_waveform import FRAMES
from samples.nano.codec.waveform_loss import waveform_loss
from samples.nano.codec.write_vocoder import load_flow, load_waveform, waveform_digest
from samples.nano.settings import FLOW_STEPS, Schedule, Settings

SCHEDULE = Schedule(steps=2600, learning_rate=5e-4, warmup_steps=20, betas=(0.8, 0.99))
_HELD_OUT_SHARE = 10  # of so many replies for training one to look at

Array = np.ndarray[Any, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=8)
    parser.add_argument("--replies", type=int, default=400, help="that the flow says (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    if options.replies < 1:
        raise Error(f"--replies must be at least 1, found {options.replies}")
    folder, work = options.work / TUNED, options.work
    model, flow = load_waveform(work, settings, tuned=False), load_flow(work, settings)
    codes, voice = reply_codes(work, settings), torch.from_numpy(speaker(settings, work / FLOW))[None]

    def items(utterances: Iterable[Utterance], split: str) -> list[Item]:
        wanted = options.replies if split == TRAIN else -(-options.replies // _HELD_OUT_SHARE)
        said = list(islice((u for u in utterances if len(u.curve)), wanted))
        found = prepare(said, settings.sound, with_turns=True)
        # As in a stream and as a whole, by turns.
        return [
            dataclasses.replace(item, mel=made(codes[u.text], number % 2 == 0))
            for number, (u, item) in enumerate(zip(said, found, strict=True))
        ]

    @torch.no_grad()
    def made(ids: Array, masked: bool) -> Array:
        mel: Array = flow_mel(flow, voice, torch.from_numpy(ids)[None], FLOW_STEPS, masked=masked)[0].numpy()
        return mel

    begun = {"flow": digest(work / FLOW / f"{FLOW}.safetensors"), WAVEFORM: waveform_digest(work)}
    keep_to(folder / RUN, begun, "remove it to begin anew with these")
    learn(options, model, items, FRAMES, Crops.wave, partial(waveform_loss, sound=settings.sound), SCHEDULE, folder)
    save_model(folder, WAVEFORM, model, {"name": settings.name, "of": begun[WAVEFORM]})
    return 0
