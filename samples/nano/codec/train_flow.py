"""Trains the flow, speech codes -> vocoder mel, under the chunk mask in half of its steps so that it can stream.

`encode` comes before it. With `--source FOLDER` it goes on from a flow that is trained, such as the one that
`samples/nano/weights` keeps in the tree, on whatever replies were rendered and encoded since. With `--sampled` it
learns, through the sampler's steps, the mel that comes out of them (`flow_loss.sampled_loss`): for replies without
guidance.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from edge_sdk.errors import Error
from samples.nano.begun import keep_to
from samples.nano.codec.checkpoint import speaker
from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.encode import codec_digest, load_tokenizer, reply_codes
from samples.nano.codec.files import digest, load_model, save_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.flow_loss import FlowBatch, begin_near, flow_loss, sampled_loss
from samples.nano.codec.folders import FLOW
from samples.nano.codec.learning import RUN, add_going_on, add_training, learn
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.speech import TRAIN, Utterance
from samples.nano.settings import Schedule, Settings

SCHEDULE = Schedule(steps=40000, learning_rate=5e-4, warmup_steps=200)
FRAMES = 150  # of a piece: 3 s, three blocks of the chunk mask
SAMPLED_FRAMES = 100  # a step of `--sampled` costs as much as three


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=16)
    add_going_on(parser, SCHEDULE)
    parser.add_argument(
        "--sampled", action="store_true", help="learn the mels that a few steps of sampling end in; needs --source"
    )


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    folder, sizes = options.work / FLOW, vocoder_sizes(settings.vocoder_spec())
    torch.manual_seed(settings.seed)
    source: Path | None = options.source
    if source and source.resolve() == folder.resolve():
        raise Error(f"--source: '{source}' is where the flow is written to; copy what is there, and give the copy")
    if options.sampled and not source:
        raise Error("--sampled goes on from a flow that has learnt velocities: give its folder as --source")
    model = load_model(source, FLOW, lambda _: Flow(sizes)) if source else Flow(sizes)
    quantizer = load_tokenizer(options.work, settings).quantizer
    scalars = quantizer.decode(torch.arange(quantizer.codes))
    codes, voice = reply_codes(options.work, settings), speaker(settings, folder)

    def items(utterances: Iterable[Utterance], split: str) -> list[Item]:
        new = 0

        def known(of: Iterable[Utterance]) -> Iterator[Utterance]:
            nonlocal new
            for utterance in of:
                if utterance.text in codes:
                    yield utterance
                else:
                    new += 1

        found = prepare(known(utterances), settings.sound, lambda u: codes[u.text], with_pcm=False)
        if new:
            raise Error(f"{new} rendered replies have no codes yet: run python -m samples.nano encode first")
        if found and split == TRAIN and not source:
            begin_near(model, torch.from_numpy(np.concatenate([item.mel for item in found], axis=1).T), scalars)
        return found

    def batch(crops: Crops, step: int) -> FlowBatch:
        return crops.flow(step, sizes.flow.codebook_size, sizes.flow.lookahead_tokens, voice)

    before = digest(source / f"{FLOW}.safetensors") if source else ""
    begun = {"codec": codec_digest(options.work), "source": before, "sampled": options.sampled}
    keep_to(folder / RUN, begun, "remove it to train the flow anew on these codes")
    schedule = dataclasses.replace(SCHEDULE, learning_rate=options.learning_rate, muon=options.muon)
    loss, frames = (sampled_loss, SAMPLED_FRAMES) if options.sampled else (flow_loss, FRAMES)
    learn(options, model, items, frames, batch, loss, schedule, folder)
    save_model(folder, FLOW, model, {"name": settings.name})
    return 0
