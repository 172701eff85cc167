"""One teacher-forced sequence, and how several become the tensors of a batch.

Every shift between ids, rows and picks is made here, in NumPy, by the rules of docs/computation.md (One step): a
sequence of P prompt ids and S steps has T = P + S - 1 backbone positions, of which P - 1, ..., T - 1 choose the S text
ids and groups. The speech head has G rows a position; BOS stands before each of them up to the first pick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error

Array = np.ndarray[Any, Any]
_NOTHING = -1e4  # a bias that leaves a key no weight; infinity would leave a row that sees no other key no number


@dataclass(frozen=True)
class Sequence:
    """A prompt and the reply to it.

    Args:
        prompt_ids: int64 [P], placeholders expanded.
        text_ids: int64 [S], the text id chosen in each step, as returned (forced and overwritten ones).
        groups: int64 [S, G], the head's picks of each step, also where they are not returned; None: no speech at all.
        mels: float32 [n_mels, frames] of each clip, normalised, in the order of their placeholders.
        placeholders: of each clip.
        text_weight: float32 [S], share of each text id in the loss.
        speech_weight: float32 [S, G], of each pick.
        prompt_weight: float32 [P - 1], of predicting prompt id n + 1 at position n; None: nothing of the prompt.
        encoded: instead of `mels`, what a frozen encoder makes of each clip: 25 Hz rows [rows, d_model] before ln_post,
            or where its last layer is not frozen what enters that, two 50 Hz rows for each [rows, 2, d_model].
        window: int64 [rows] of each such clip: the number of the window that the encoder had each row in.
        entered: int64 [S, G], what enters the next pick and the next step instead of `groups`; None: the same.
    """

    prompt_ids: Array
    text_ids: Array
    groups: Array | None = None
    mels: tuple[Array, ...] = ()
    placeholders: tuple[int, ...] = ()
    text_weight: Array | None = None
    speech_weight: Array | None = None
    prompt_weight: Array | None = None
    encoded: tuple[Array, ...] = ()
    window: tuple[Array, ...] = ()
    entered: Array | None = None

    @property
    def length(self) -> int:
        """Backbone positions."""
        return len(self.prompt_ids) + len(self.text_ids) - 1


@dataclass
class Batch:
    """Tensors of B sequences, padded on the right to T positions.

    A counts the placeholders of all, N their 25 Hz rows, W the windows that are still to be encoded.
    """

    ids: Tensor  # int64 [B, T]
    groups: Tensor  # int64 [B, T, G]: the group that entered with each position
    mixed: Tensor  # bool [B, T]: it did
    previous: Tensor  # int64 [B, T * G]: the speech id before each pick
    text_target: Tensor  # int64 [B, T]
    text_weight: Tensor  # float32 [B, T]
    speech_target: Tensor  # int64 [B, T * G]
    speech_weight: Tensor  # float32 [B, T * G]
    mel: Tensor  # float32 [W, n_mels, frames]
    mel_frames: Tensor  # int64 [W]
    pairs: Tensor  # int64 [N, 2]: rows of all windows, flattened, that are averaged
    encoded: Tensor  # float32 [N, d_model] or [N, 2, d_model], or [0, d_model]: the encoder is to make them of `mel`
    windows: Tensor  # int64 [W, R]: pairs of `encoded` in each of its windows, N where there are none; else [0, 0]
    audio_groups: Tensor  # int64 [A, G]: 25 Hz rows of each placeholder; N is a row of zeros
    audio_at: Tensor  # int64 [A]: where they go, in [B * T]
    speech: bool = field(default=True)  # any sequence has speech

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Batch(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in moved.items()})


def activity(text_ids: Array, groups: Array, model: ModelConfig) -> tuple[Array, Array]:
    """(returned bool [S]: the group of this step is part of the reply; fed bool [S]: it enters the next step's row).

    Speech becomes active in the step that consumes audio_bos; a group in which any pick is the codec's eos ends it.
    """
    returned, fed = np.zeros(len(text_ids), bool), np.zeros(len(text_ids), bool)
    active = False
    for step in range(1, len(text_ids)):
        active = active or text_ids[step - 1] == model.text_ids.audio_bos
        ended = bool((groups[step] == model.speech_ids.eos).any())
        returned[step], fed[step] = active, active and not ended
        active = active and not ended
    return returned, fed


def collate(sequences: Items[Sequence], model: ModelConfig) -> Batch:
    """The batch of `sequences`.

    Raises:
        Error: a sequence whose parts do not fit together; says which and how.
    """
    size, length = model.group_size, max(s.length for s in sequences)
    rows = [positions(s, model, length) for s in sequences]
    stacked = {name: torch.from_numpy(np.stack([r[name] for r in rows])) for name in rows[0]}
    sound = windows(sequences, model, length)
    batch = Batch(**stacked, **sound, speech=any(s.groups is not None for s in sequences))
    if batch.previous.shape[1] != length * size:
        raise Error("a sequence's groups do not have the model's group size")
    return batch


@dataclass(frozen=True)
class Places:
    """Where the rows of a speech head that sees a part of a sequence stand, and what each counts for."""

    positions: Tensor  # int64 [B, T * G], of the whole sequence: what the rotary embedding turns by
    key_bias: Tensor | None  # float32 [B, T * G], added to the scores of a key; None: nothing is

    @classmethod
    def of(cls, at: Tensor, bias: Tensor | None, size: int) -> Places:
        """From backbone positions and biases [B, T]."""
        rows = at[..., None] * size + torch.arange(size, device=at.device)
        return cls(rows.flatten(1), None if bias is None else bias[..., None].expand(*bias.shape, size).flatten(1))


def near_reply(hidden: Tensor, batch: Batch, context: int, sampled: int = 0) -> tuple[Tensor, Batch, Places]:
    """What the speech head needs of `hidden` [B, T, hidden] and the batch, without most of the prompts.

    Of each sequence the positions from `context` before its first pick on, and before them `sampled` drawn from the
    rest of the prompt, each of which counts in attention's sums as often as it stands for others: an estimate of
    what the head sees on the device, where it sees all. (On average the reply's rows get it right in the first layer;
    behind it a sampled row has seen itself as often as it counts.)
    """
    size = batch.groups.shape[2]
    spoken = batch.speech_weight.unflatten(1, (-1, size)).amax(dim=2) > 0  # [B, T]
    length, device = batch.ids.shape[1], spoken.device
    places = torch.arange(length, device=device)
    first = torch.where(spoken, places, length).amin(dim=1)
    last = torch.where(spoken, places, -1).amax(dim=1)
    start = (first - context).clamp(min=0)
    width = max(1, int((last - start).amax()) + 1)
    near = start[:, None] + torch.arange(width, device=device)
    sampled = min(sampled, int(start.max()))
    far, bias = _sample(start, sampled)
    at = torch.cat([far, near], dim=1)
    inside = torch.cat([torch.zeros_like(far, dtype=torch.bool), near < length], dim=1)[..., None]
    at = at.clamp(max=length - 1)

    def cut(values: Tensor) -> Tensor:
        """[B, T, ...] -> [B, sampled + width, ...]."""
        return values[torch.arange(len(at), device=at.device)[:, None], at]

    def cut_picks(values: Tensor) -> Tensor:
        return cut(values.unflatten(1, (-1, size)))

    weight = cut_picks(batch.speech_weight) * inside
    kept = dataclasses.replace(
        batch,
        ids=cut(batch.ids),
        previous=cut_picks(batch.previous).flatten(1),
        speech_target=cut_picks(batch.speech_target).flatten(1),
        speech_weight=weight.flatten(1),
    )
    biases = torch.cat([bias, bias.new_zeros(near.shape)], dim=1) if sampled else None
    return cut(hidden), kept, Places.of(at, biases, size)


def _sample(start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions int64 [B, count] in [0, start), one of each of `count` equal parts, and the biases of their keys. Where
    there are fewer than `count`, each is taken once, and what is left over counts for nothing."""
    device = start.device
    part, share = torch.arange(count, device=device), start[:, None] / max(1, count)
    spread = ((part + torch.rand(len(start), count, device=device)) * share).long()
    enough = start[:, None] >= count
    at = torch.where(enough, spread, part.clamp(max=max(0, count - 1))).clamp(min=0)
    once = torch.where(part < start[:, None], 0.0, _NOTHING)
    return at, torch.where(enough, share.clamp(min=1).log(), once)


def positions(s: Sequence, model: ModelConfig, length: int) -> dict[str, Array]:
    """What one sequence has at each of `length` positions: ids, targets and weights, padded."""
    size, ids, prompt, steps = model.group_size, model.speech_ids, len(s.prompt_ids), len(s.text_ids)
    groups = np.full((steps, size), ids.pad, np.int64) if s.groups is None else s.groups.astype(np.int64)
    if groups.shape != (steps, size):
        raise Error(f"a sequence has {steps} text ids and groups of shape {groups.shape}; want ({steps}, {size})")
    fed = np.zeros(steps, bool) if s.groups is None else activity(s.text_ids, groups, model)[1]
    first = prompt - 1  # the position that chooses step 0
    out = {
        "ids": np.zeros(length, np.int64),
        "groups": np.full((length, size), ids.pad, np.int64),
        "mixed": np.zeros(length, bool),
        "previous": np.full(length * size, ids.bos, np.int64),
        "text_target": np.zeros(length, np.int64),
        "text_weight": np.zeros(length, np.float32),
        "speech_target": np.zeros(length * size, np.int64),
        "speech_weight": np.zeros(length * size, np.float32),
    }
    end = prompt + steps - 1
    everything = np.concatenate([s.prompt_ids, s.text_ids])
    out["ids"][:end] = everything[:-1]
    out["text_target"][:end] = everything[1:]
    out["text_weight"][first:end] = 1.0 if s.text_weight is None else s.text_weight
    if s.prompt_weight is not None:
        out["text_weight"][:first] = s.prompt_weight
    # The group of step k enters with the row that consumes step k's text id.
    entered = groups if s.entered is None else s.entered
    if entered.shape != groups.shape:
        raise Error(f"a sequence's groups are {groups.shape}, but what enters for them is {entered.shape}")
    out["groups"][prompt:end] = entered[:-1]
    out["mixed"][prompt:end] = fed[:-1]
    picks = groups.reshape(-1)
    out["previous"][first * size + 1 : end * size] = entered.reshape(-1)[:-1]
    if s.groups is not None:
        out["speech_target"][first * size : end * size] = picks
        weight = np.ones(picks.shape, np.float32) if s.speech_weight is None else s.speech_weight.reshape(-1)
        out["speech_weight"][first * size : end * size] = weight
    return out


def windows(sequences: Items[Sequence], model: ModelConfig, length: int) -> dict[str, Tensor]:
    """The clips of all sequences cut into encoder windows, or their encoded rows, and the indices that pool and group
    the rows."""
    frames, size, width = model.encoder.window_frames, model.group_size, model.encoder.d_model
    cut: list[Array] = []
    pairs: list[Array] = []
    encoded: list[Array] = []
    groups: list[Array] = []
    at: list[int] = []
    made = 0
    unfinished: list[Array] = []  # where `encoded` has yet to pass through the last layer, the rows of each window
    for b, s in enumerate(sequences):
        places = np.flatnonzero(s.prompt_ids == model.text_ids.audio)
        clips, numbers = s.encoded or s.mels, s.window or (None,) * len(s.placeholders)
        if len(places) != sum(s.placeholders) or len(clips) != len(s.placeholders):
            raise Error(
                f"sequence {b} has {len(places)} audio placeholders, and {len(clips)} clips for {sum(s.placeholders)}"
            )
        at += (b * length + places).tolist()
        for clip, count, number in zip(clips, s.placeholders, numbers, strict=True):
            if s.encoded:
                encoded.append(clip[: count * size].astype(np.float32))
                rows = len(encoded[-1])
                if encoded[-1].ndim == 3:
                    if number is None or len(number) < rows:
                        raise Error(
                            f"sequence {b} has rows that are to pass through windows, but not which are of which"
                        )
                    changes = np.flatnonzero(np.diff(number[:rows])) + 1
                    unfinished += np.split(made + np.arange(rows), changes)
            else:
                pieces = [clip[:, start : start + frames] for start in range(0, clip.shape[1], frames)]
                pairs.append(_pairs(pieces, len(cut) * model.encoder.n_window, model)[: count * size])
                cut += pieces
                rows = len(pairs[-1])
            index = np.full(count * size, -1, np.int64)  # -1: filler
            index[:rows] = made + np.arange(rows)
            made += rows
            groups.append(index.reshape(count, size))
    if encoded and cut:
        raise Error("a batch has clips that are encoded and clips that are not")
    mels = np.zeros((len(cut), model.encoder.n_mels, frames), np.float32)
    for w, piece in enumerate(cut):
        mels[w, :, : piece.shape[1]] = piece
    index = np.concatenate(groups) if groups else np.zeros((0, size), np.int64)
    in_windows = np.full((len(unfinished), max(map(len, unfinished), default=0)), made, np.int64)
    for w, of_window in enumerate(unfinished):
        in_windows[w, : len(of_window)] = of_window
    return {
        "mel": torch.from_numpy(mels),
        "mel_frames": torch.tensor([piece.shape[1] for piece in cut], dtype=torch.int64),
        "pairs": torch.from_numpy(np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)),
        "encoded": torch.from_numpy(np.concatenate(encoded) if encoded else np.zeros((0, width), np.float32)),
        "windows": torch.from_numpy(in_windows),
        "audio_groups": torch.from_numpy(np.where(index < 0, made, index)),
        "audio_at": torch.tensor(at, dtype=torch.int64),
    }


def _pairs(pieces: Items[Array], first: int, model: ModelConfig) -> Array:
    """Rows of a clip's windows, two by two, int64 [n, 2]; `first` is the first window's first row."""
    rows: list[int] = []
    for w, piece in enumerate(pieces):
        start = first + w * model.encoder.n_window
        rows += range(start, start + _rows(piece))
    return np.array(rows[: len(rows) // 2 * 2], np.int64).reshape(-1, 2)


def _rows(mel: Array) -> int:
    """Encoder rows of a window: the second convolution has stride 2."""
    return (mel.shape[1] - 1) // 2 + 1
