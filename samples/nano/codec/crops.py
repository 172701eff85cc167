"""Training batches: pieces of the reply voice's sound, the same for the same seed and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from samples.nano.codec.flow_loss import FlowBatch
from samples.nano.codec.mel import FLOOR, vocoder_mel
from samples.nano.codec.speech import TURN, Utterance, fundamental_turns
from samples.nano.codec.tokenizer import SoundBatch
from samples.nano.codec.waveform_loss import EARLY_SAMPLES, WaveBatch
from samples.nano.settings import Sound
from samples.nano.training_data import numbers

FULL_SCALE = 32768  # of int16
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Item:
    """One utterance in memory. f0_hz float32 [L], mel float32 [n_mels, L]; pcm int16 [N], codes int64 [T] and turns
    uint16 [N] (`fundamental_turns`): empty where not asked for."""

    pcm: Array
    f0_hz: Array
    mel: Array
    codes: Array
    turns: Array


def prepare(
    utterances: Iterable[Utterance],
    sound: Sound,
    codes: Callable[[Utterance], Array] | None = None,
    with_turns: bool = False,
    with_pcm: bool = True,
) -> list[Item]:
    """`codes`: of an utterance; without it items have none. `with_turns` needs utterances that have a curve."""
    items = []
    for utterance in utterances:
        with torch.no_grad():
            mel = vocoder_mel(torch.from_numpy(utterance.pcm.astype(np.float32))[None], sound)[0].numpy()
        pcm = np.clip(np.round(utterance.pcm * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        found = np.empty(0, np.int64) if codes is None else codes(utterance)
        turns = np.empty(0, np.uint16)
        if with_turns:
            turns = fundamental_turns(utterance.curve, len(pcm), sound.output_rate_hz)
        items.append(Item(pcm if with_pcm else pcm[:0].copy(), utterance.f0_hz, mel, found, turns))
    return items


class Crops:
    """Batches of `rows` pieces of `frames` mel frames (whole tokens). A shorter utterance is followed by silence."""

    def __init__(self, items: Sequence[Item], sound: Sound, rows: int, frames: int, seed: int) -> None:
        self.items, self.sound, self.rows, self.seed = items, sound, rows, seed
        self.frames = frames - frames % sound.frames_per_token

    def picked(self, step: int) -> list[tuple[Item, int]]:
        """(utterance, first frame) of each row. Every fourth begins where the utterance does, as a reply does."""
        rng = numbers(self.seed, step, "crops")
        picked = []
        for row in range(self.rows):
            item = self.items[int(rng.integers(len(self.items)))]
            tokens = max(0, item.mel.shape[1] - self.frames) // self.sound.frames_per_token
            start = int(rng.integers(tokens + 1)) * self.sound.frames_per_token
            picked.append((item, 0 if row % 4 == 0 else start))
        return picked

    def sound_of(self, step: int) -> SoundBatch:
        silence = math.log(FLOOR)
        picked = self.picked(step)
        mel = [_piece(item.mel, start, self.frames, silence) for item, start in picked]
        f0 = [_piece(item.f0_hz, start, self.frames) for item, start in picked]
        return SoundBatch(torch.from_numpy(np.stack(mel)), torch.from_numpy(np.stack(f0)))

    def wave(self, step: int) -> WaveBatch:
        heard, hop = self.sound_of(step), self.sound.hop_samples
        picked = self.picked(step)
        pcm = [_piece(item.pcm, start * hop, self.frames * hop) for item, start in picked]
        turns = [_piece(item.turns, start * hop + EARLY_SAMPLES, self.frames * hop) for item, start in picked]
        return WaveBatch(
            torch.from_numpy(np.stack(pcm).astype(np.float32) / FULL_SCALE),
            heard.mel,
            heard.f0_hz,
            torch.from_numpy(np.stack(turns).astype(np.float32) / TURN),
        )

    def flow(self, step: int, none: int, lookahead: int, speaker: Array) -> FlowBatch:
        """`none`: the id that stands for no token. Codes reach `lookahead` tokens further than the mel."""
        per_token = self.sound.frames_per_token
        tokens, codes, valid = self.frames // per_token + lookahead, [], []
        for item, start in self.picked(step):
            codes.append(_piece(item.codes, start // per_token, tokens, none))
            valid.append(np.arange(start, start + self.frames) < item.mel.shape[1])
        return FlowBatch(
            torch.from_numpy(np.stack(codes)),
            self.sound_of(step).mel.transpose(1, 2).contiguous(),
            torch.from_numpy(np.stack(valid)),
            torch.from_numpy(speaker)[None].expand(self.rows, -1),
        )


def _piece(values: Array, start: int, count: int, filling: float = 0) -> Array:
    """`count` values of the last axis from `start` on, filled up at the end."""
    piece = values[..., start : start + count]
    missing = [(0, 0)] * (values.ndim - 1) + [(0, count - piece.shape[-1])]
    return np.pad(piece, missing, constant_values=filling)
