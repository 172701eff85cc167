"""Lets the encoder hear every training question once, for the stages that leave it as it is (--encoder keep).

What it makes of them is kept in WORK/heard: 25 Hz rows in float16, 70 MB an hour. A stage takes them where they are its
own encoder's, and is then spared the encoder, which costs more than the backbone does. For stages that train the
encoder's last layer (--encoder last) the rows that enter it are kept (--before-last), 140 MB an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sdk.commands.output import progress
from edge_sdk.errors import Error
from samples.nano.devices import device_of, multiplies_bfloat16
from samples.nano.model.batch import Array, collate
from samples.nano.model.batch import Sequence as Example
from samples.nano.model.checkpoint import Loaded, load
from samples.nano.model.language import LanguageHalf
from samples.nano.needed import checkpoint_folder
from samples.nano.stages.data import Corpus
from samples.nano.stages.examples import Heard
from samples.nano.stages.sources import RenderedSounds

HEARD = "heard"
_CLIPS = 32  # of a batch
Key = tuple[str, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, help="checkpoint whose encoder hears (default: WORK/start)")
    parser.add_argument(
        "--before-last", action="store_true", help="keep what enters the last layer: for --encoder last"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def run(options: argparse.Namespace) -> int:
    loaded = load(checkpoint_folder(options.work, "start", options.source))
    sounds = RenderedSounds(options.work / "speech" / "users", "train", {})
    last = not options.before_last
    if not last and loaded.config.encoder.n_window % 2:
        raise Error(
            f"--before-last keeps rows in pairs, but a window has {loaded.config.encoder.n_window} rows (n_window)"
        )
    found = encode(loaded, sounds, device_of(options.device), last=last)
    write(options.work / HEARD, digest(loaded.model, last=last), found)
    print(f"{len(found)} questions heard, {sum(len(h.encoded) for h in found.values() if h.encoded is not None)} rows")
    return 0


def encode(loaded: Loaded, sounds: RenderedSounds, device: torch.device, *, last: bool = True) -> dict[Key, Heard]:
    """Every question and take, with its rows float16 [rows, d_model], or [rows, 2, d_model] without the last layer."""
    model, show = loaded.model.to(device).eval(), progress()
    keys = [(text, take) for text, clips in sounds.clips.items() for take in range(len(clips))]
    keys.sort(key=lambda key: len(sounds.clips[key[0]][key[1]]))  # of one length: little padding
    out: dict[Key, Heard] = {}
    for part in _parts(keys):
        heard = [Heard.of(_sound(sounds, key), loaded.config) for key in part]
        for key, h, rows in zip(part, heard, rows_of(model, heard, device, last=last), strict=True):
            out[key] = Heard.kept(rows, h.placeholders, loaded.config)
        show("heard", len(out), len(keys))
    return out


@torch.no_grad()
def rows_of(model: LanguageHalf, heard: Sequence[Heard], device: torch.device, *, last: bool = True) -> list[Array]:
    """Of each clip in float16: 25 Hz rows before ln_post [rows, d_model], or pairs of those that enter the last layer
    [rows, 2, d_model]."""
    audio = model.config.text_ids.audio
    examples = [
        Example(np.full(h.placeholders, audio), np.zeros(1, np.int64), mels=(h.mel,), placeholders=(h.placeholders,))
        for h in heard
    ]
    batch = collate(examples, model.config).to(device)
    with torch.autocast(device.type, torch.bfloat16) if multiplies_bfloat16(device) else nullcontext():
        pairs = model.continuous_audio_tower.rows(batch.mel, batch.mel_frames, last=last).flatten(0, 1)[batch.pairs]
        rows = (pairs.mean(dim=1) if last else pairs).to("cpu", torch.float16).numpy()
    counts = [int((batch.audio_groups[at] < len(rows)).sum()) for at in _groups_of(heard)]
    return np.split(rows, np.cumsum(counts)[:-1])


def write(folder: Path, of: str, found: dict[Key, Heard]) -> None:
    """rows.npy and index.json; the index is written last, so that a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    rows = [h.encoded for h in found.values() if h.encoded is not None]
    shape = (sum(map(len, rows)), *rows[0].shape[1:])
    kept = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=rows[0].dtype, shape=shape)
    np.concatenate(rows, out=kept)
    kept.flush()
    clips = [[*key, h.placeholders, len(r)] for (key, h), r in zip(found.items(), rows, strict=True)]
    (folder / "index.json").write_text(json.dumps({"encoder": of, "clips": clips}), encoding="utf-8")


def read(folder: Path, model: LanguageHalf) -> dict[Key, Heard]:
    """What this model's encoder made of the questions; empty where nothing, or only another encoder's, is kept."""
    index = folder / "index.json"
    if not index.is_file():
        return {}
    try:
        told: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        if told["encoder"] not in (digest(model), digest(model, last=False)):
            return {}
        rows, out, at = np.load(folder / "rows.npy", mmap_mode="r"), {}, 0
        for text, take, placeholders, count in told["clips"]:
            out[text, take] = Heard.kept(rows[at : at + count], placeholders, model.config)
            at += count
        return out
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise Error(f"'{folder}' does not hold what was heard ({e}): run python -m samples.nano hear again") from e


def digest(model: LanguageHalf, *, last: bool = True) -> str:
    """Of the encoder's weights up to ln_post, or up to its last layer."""
    found, tower = hashlib.sha256(), model.continuous_audio_tower
    behind = ("proj.", "ln_post.") + (() if last else (f"layers.{len(tower.layers) - 1}.",))
    for name, value in tower.state_dict().items():
        if not name.startswith(behind):
            found.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def use(corpus: Corpus, folder: Path, model: LanguageHalf, *, last: bool = True) -> None:
    """Spare the encoder what it has heard before.

    Args:
        last: False, if its last layer is trained: then only what was kept before that is of use.
    """
    found = read(folder, model)
    if not last and any(h.encoded is not None and h.encoded.ndim == 2 for h in found.values()):
        raise Error(
            f"'{folder}' has what came out of the encoder's last layer, which --encoder last trains: run python -m "
            "samples.nano hear --before-last again"
        )
    corpus.mels.update(found)


def _parts(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    for at in range(0, len(keys), _CLIPS):
        yield keys[at : at + _CLIPS]


def _sound(sounds: RenderedSounds, key: Key) -> Array:
    pcm = sounds.question(*key)
    assert pcm is not None  # the keys are its own
    return pcm


def _groups_of(heard: Sequence[Heard]) -> Iterator[slice]:
    """Where each clip's placeholders stand in a batch's `audio_groups`."""
    at = 0
    for h in heard:
        yield slice(at, at + h.placeholders)
        at += h.placeholders
