"""Trains the flow, speech codes -> vocoder mel, under the chunk mask in half of its steps so that it can stream.

`encode` comes before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from edge_sdk.errors import Error
from samples.nano.begun import keep_to
from samples.nano.codec.checkpoint import speaker
from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.encode import codec_digest, load_tokenizer, reply_codes
from samples.nano.codec.files import save_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.flow_loss import FlowBatch, begin_near, flow_loss
from samples.nano.codec.folders import FLOW
from samples.nano.codec.learning import RUN, add_training, learn
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.speech import TRAIN, Utterance
from samples.nano.settings import Schedule, Settings

SCHEDULE = Schedule(steps=40000, learning_rate=5e-4, warmup_steps=200)
FRAMES = 150  # of a piece: 3 s, three blocks of the chunk mask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=16)


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    folder, sizes = options.work / FLOW, vocoder_sizes(settings.vocoder_spec())
    torch.manual_seed(settings.seed)
    model = Flow(sizes)
    quantizer = load_tokenizer(options.work, settings).quantizer
    scalars = quantizer.decode(torch.arange(quantizer.codes))
    codes, voice = reply_codes(options.work, settings), speaker(settings, folder)

    def items(utterances: Sequence[Utterance]) -> list[Item]:
        new = sum(utterance.text not in codes for utterance in utterances)
        if new:
            raise Error(f"{new} rendered replies have no codes yet: run python -m samples.nano encode first")
        found = prepare(utterances, settings.sound, lambda utterance: codes[utterance.text])
        if found and utterances[0].split == TRAIN:
            begin_near(model, torch.from_numpy(np.concatenate([item.mel for item in found], axis=1).T), scalars)
        return found

    def batch(crops: Crops, step: int) -> FlowBatch:
        return crops.flow(step, sizes.flow.codebook_size, sizes.flow.lookahead_tokens, voice)

    keep_to(folder / RUN, {"codec": codec_digest(options.work)}, "remove it to train the flow anew on these codes")
    learn(options, model, items, FRAMES, batch, flow_loss, SCHEDULE, folder)
    save_model(folder, FLOW, model, {"name": settings.name})
    return 0
