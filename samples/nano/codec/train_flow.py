"""Trains the flow, speech codes -> vocoder mel, under the chunk mask in half of its steps so that it can stream.

`encode` comes before it. --source goes on from a flow that is trained: WORK/flow itself, or one beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sdk.errors import Error
from samples.nano.arguments import share
from samples.nano.begun import keep_to
from samples.nano.codec.checkpoint import speaker
from samples.nano.codec.crops import Crops, Item, prepare
from samples.nano.codec.encode import codec_digest, load_tokenizer, reply_codes
from samples.nano.codec.files import digest, load_model, save_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.flow_loss import FlowBatch, begin_near, flow_loss
from samples.nano.codec.folders import FLOW
from samples.nano.codec.learning import RUN, add_training, learn
from samples.nano.codec.quantizer import Quantizer
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.speech import TRAIN, Utterance
from samples.nano.codec.tokenizer import Tokenizer
from samples.nano.settings import Schedule, Settings

SCHEDULE = Schedule(steps=40000, learning_rate=5e-4, warmup_steps=200)
FRAMES = 150  # of a piece: 3 s, three blocks of the chunk mask
_SLIPS = torch.tensor([0.0, 1.0, 1.0, 2.0])  # times the share: a quarter of a batch's pieces is as it was recorded

Array = np.ndarray[Any, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser, SCHEDULE, rows=16)
    parser.add_argument("--source", type=Path, help="folder of a trained flow to go on from (default: a fresh one)")
    parser.add_argument(
        "--decoded-share",
        type=share,
        default=0.0,
        help="of the tokenizer's decoder's mel in what is learnt: less detail, sooner understood",
    )
    parser.add_argument(
        "--slip-share",
        type=share,
        default=0.0,
        help="of codes that are others that sound alike, as a speech head slips",
    )


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    folder, sizes = options.work / FLOW, vocoder_sizes(settings.vocoder_spec())
    torch.manual_seed(settings.seed)
    model = load_model(options.source, FLOW, lambda _: Flow(sizes)) if options.source else Flow(sizes)
    tokenizer = load_tokenizer(options.work, settings)
    quantizer = tokenizer.quantizer
    scalars = quantizer.decode(torch.arange(quantizer.codes))
    codes, voice = reply_codes(options.work, settings), speaker(settings, folder)

    def items(utterances: Sequence[Utterance]) -> list[Item]:
        new = sum(utterance.text not in codes for utterance in utterances)
        if new:
            raise Error(f"{new} rendered replies have no codes yet: run python -m samples.nano encode first")
        found = prepare(utterances, settings.sound, lambda utterance: codes[utterance.text])
        if options.decoded_share:
            found = [dataclasses.replace(i, mel=blended(tokenizer, i, options.decoded_share)) for i in found]
        if found and utterances[0].split == TRAIN and not options.source:
            begin_near(model, torch.from_numpy(np.concatenate([item.mel for item in found], axis=1).T), scalars)
        return found

    def batch(crops: Crops, step: int) -> FlowBatch:
        return crops.flow(step, sizes.flow.codebook_size, sizes.flow.lookahead_tokens, voice)

    begun = {"codec": codec_digest(options.work)}
    if options.source:
        begun["source"] = digest(options.source / f"{FLOW}.safetensors")
    for name in ("decoded_share", "slip_share"):
        if getattr(options, name):
            begun[name] = getattr(options, name)
    keep_to(folder / RUN, begun, "remove it to train the flow anew on these codes")
    loss = (
        partial(slipped_loss, quantizer=quantizer, slip_share=options.slip_share) if options.slip_share else flow_loss
    )
    learn(options, model, items, FRAMES, batch, loss, SCHEDULE, folder)
    save_model(folder, FLOW, model, {"name": settings.name})
    return 0


@torch.no_grad()
def blended(tokenizer: Tokenizer, item: Item, decoded: float) -> Array:
    """mel float32 [n_mels, L]: the sound's own, moved by a share of the way to what the decoder makes of its codes."""
    quantized = tokenizer.quantizer.decode(torch.from_numpy(item.codes.astype(np.int64))[None])
    guess = tokenizer.decode(quantized)[0][0, :, : item.mel.shape[1]].numpy()
    mel = item.mel.copy()
    mel[:, : guess.shape[1]] += decoded * (guess - mel[:, : guess.shape[1]])
    return mel


def slipped_loss(model: Flow, batch: FlowBatch, quantizer: Quantizer, slip_share: float) -> Tensor:
    """`flow_loss` behind codes of which some are not those of the sound: most of a word is in what stands around it."""
    rows = torch.arange(len(batch.codes)) % len(_SLIPS)
    codes = quantizer.slipped(batch.codes, slip_share * _SLIPS[rows, None].to(batch.codes.device))
    return flow_loss(model, dataclasses.replace(batch, codes=codes))
