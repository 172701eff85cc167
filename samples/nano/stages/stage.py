"""What the training stages share: options, which weights move, the run from one checkpoint to the next."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from edge_sdk.errors import Error
from samples.nano import arguments, training
from samples.nano.arguments import share, weight
from samples.nano.begun import keep_to
from samples.nano.codec.encode import codec_digest
from samples.nano.model.batch import Batch
from samples.nano.model.checkpoint import Loaded, load, save
from samples.nano.model.language import LanguageHalf
from samples.nano.needed import checkpoint_folder
from samples.nano.settings import Schedule
from samples.nano.stages.data import Corpus, Sounds
from samples.nano.stages.examples import Prompter
from samples.nano.stages.layout import Layout
from samples.nano.texts.dialogues import Dialogue
from samples.nano.texts.store import read_dialogues

Loss = Callable[[LanguageHalf, Batch], tuple[Tensor, dict[str, Tensor]]]
BACKBONE = ("language_model.",)
# What was trained before, on text alone or on other speech, where all else is fresh.
TRAINED_BEFORE = (*BACKBONE, *(f"continuous_audio_tower.{part}" for part in ("conv", "layers.", "ln_post.")))
# What stands between sound and backbone, and between backbone and codes: all that pre-alignment trains.
ADAPTER_AND_HEAD = ("continuous_audio_tower.proj.", "audio_tower.", "audio_invert_tower.")
ALL = ("",)
_ENCODER = "continuous_audio_tower."
_RECIPE = 4  # raised where a step is no longer the one it was
# May change; of the last two the trainer keeps its own record.
_FREE = ("minutes", "device", "compile", "steps", "learning_rate")


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe.

    Args:
        name: the folder of its result in the work folder.
        source: the folder of the checkpoint it begins with.
        trains: beginnings of the names of the weights that move; the rest is frozen.
        schedules: by preset; one that is not there takes nano's. The numbers are ours, to be tuned: none is the
            report's.
        batch: sequences of one step, by preset.
    """

    name: str
    source: str
    trains: tuple[str, ...]
    schedules: Mapping[str, Schedule]
    batch: Mapping[str, int]


def add_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    """The options every stage has."""
    parser.add_argument("--source", type=Path, help=f"the checkpoint it begins with (default: WORK/{stage.source})")
    parser.add_argument("-o", "--output", type=Path, help=f"the checkpoint it makes (default: WORK/{stage.name})")
    parser.add_argument("--texts", type=Path, help="folder of the dialogues (default: WORK/texts)")
    parser.add_argument("--longest", type=int, metavar="IDS", help="leave out turns whose prompts are longer")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: by preset)")
    parser.add_argument("--learning-rate", type=float, help="at its highest (default: by preset)")
    parser.add_argument("--muon", action="store_true", help="Muon for the layers' matrices (default: AdamW for all)")
    parser.add_argument("--batch", type=arguments.rows, help="sequences a step (default: by preset)")
    parser.add_argument(
        "--seed",
        type=arguments.seed,
        help="of the batches; a run that goes on over the same data takes another (default: the preset's)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile what lies between a layer's products: a minute at first, then quicker; needs a C++ compiler",
    )
    training.add_training_arguments(parser)


def add_speech_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of stages that train speech."""
    layout = Layout()
    parser.add_argument(
        "--encoder",
        choices=("train", "last", "keep"),
        default="train",
        help="keep: it stays Whisper's; last: all but its last layer does",
    )
    parser.add_argument(
        "--lead-steps", type=arguments.lead_steps, default=layout.lead_steps, help="silent steps before a reply's sound"
    )
    parser.add_argument("--align", choices=("lead", "words"), default="lead", help="where a reply's text stands")
    parser.add_argument("--sil-weight", type=weight, default=layout.sil_weight, help="of silence in the text's loss")
    parser.add_argument(
        "--history-weight", type=weight, default=layout.history_weight, help="of earlier replies in the prompt"
    )
    parser.add_argument("--speech-share", type=weight, default=1.0, help="of the speech loss, beside the text's 1")
    parser.add_argument(
        "--backbone-rate",
        type=share,
        default=1.0,
        help="share of the learning rate for what was trained before: text backbone, encoder's layers",
    )


def layout_of(options: argparse.Namespace) -> Layout:
    return Layout(
        options.lead_steps, options.align == "words", options.sil_weight, history_weight=options.history_weight
    )


def source_of(options: argparse.Namespace, stage: Stage) -> Path:
    return checkpoint_folder(options.work, stage.source, options.source)


def corpus_of(
    options: argparse.Namespace, loaded: Loaded, names: Iterable[str], sounds: Sounds | None, layout: Layout
) -> Corpus:
    """The dialogues of the files `names` in the texts' folder."""
    folder = options.texts or options.work / "texts"
    found: list[Dialogue] = [d for name in names for d in read_dialogues(folder / f"{name}.jsonl")]
    return Corpus(Prompter(loaded.folder, loaded.config), found, sounds, layout, options.longest)


def sounds_of(options: argparse.Namespace) -> Sounds:
    """What `render` and `encode` made of the training texts."""
    from samples.nano.codec.encode import reply_codes
    from samples.nano.stages.sources import RenderedSounds

    speech = options.work / "speech"
    codes = reply_codes(options.work, options.settings)
    return RenderedSounds(speech / "users", "train", codes, speech / "replies" if options.align == "words" else None)


def batch_of(options: argparse.Namespace, stage: Stage) -> int:
    return options.batch or stage.batch.get(options.preset, stage.batch["nano"])


def seed_of(options: argparse.Namespace) -> int:
    seed: int = options.settings.seed if options.seed is None else options.seed
    return seed


def schedule_of(options: argparse.Namespace, stage: Stage) -> Schedule:
    schedule = stage.schedules.get(options.preset, stage.schedules["nano"])
    if options.steps is not None:
        schedule = replace(schedule, steps=options.steps, warmup_steps=min(schedule.warmup_steps, options.steps // 10))
    if options.learning_rate is not None:
        schedule = replace(schedule, learning_rate=options.learning_rate)
    if getattr(options, "backbone_rate", 1.0) != 1.0:
        schedule = replace(schedule, slow=TRAINED_BEFORE, slow_rate=options.backbone_rate)
    return replace(schedule, muon=options.muon)


def freeze(model: LanguageHalf, trains: tuple[str, ...], keeps: tuple[str, ...] = ()) -> int:
    """Let only the weights whose names begin as in `trains`, and not as in `keeps`, move; returns how many values they
    have."""
    count = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trains) and not name.startswith(keeps))
        count += parameter.numel() if parameter.requires_grad else 0
    if not count:
        raise Error(f"no weight of this model begins with {' or '.join(trains)}")
    return count


def open_source(options: argparse.Namespace, stage: Stage) -> Loaded:
    """The checkpoint the stage begins with, all but `trains` frozen."""
    loaded = load(source_of(options, stage))
    freeze(loaded.model, stage.trains, kept_of_encoder(loaded.config.encoder.num_layers, options))
    if options.compile:
        fuse(loaded.model)
    return loaded


def fuse(model: LanguageHalf) -> None:
    """Raises Error where there is no C++ compiler."""
    named = os.environ.get("CXX")
    if not any(map(shutil.which, (named,) if named else ("g++", "clang++"))):
        raise Error("--compile needs a C++ compiler: install g++ (or name one in the variable CXX), or leave it out")
    model.fuse()


def kept_of_encoder(layers: int, options: argparse.Namespace) -> tuple[str, ...]:
    """Beginnings of the names of what stays as it came from Whisper, which has heard more people than this recipe
    renders."""
    kept = {"keep": layers, "last": layers - 1}.get(getattr(options, "encoder", "train"))
    if kept is None:
        return ()
    parts = ["conv1.", "conv2.", *(f"layers.{layer}." for layer in range(kept))]
    if kept == layers:
        parts.append("ln_post.")
    return tuple(_ENCODER + part for part in parts)


def pin(folder: Path, loaded: Loaded, options: argparse.Namespace) -> None:
    """A run is only taken up with the same weights and options and, where it speaks, the same codes.

    Raises:
        Error: it was begun with others; says which.
    """
    given = {key: value for key, value in vars(options).items() if isinstance(value, (int, float, str, type(None)))}
    now = {key: value for key, value in given.items() if key not in _FREE} | {"source": digest(loaded.folder)}
    now["recipe"] = _RECIPE
    if "speech_share" in given:
        now["codec"] = codec_digest(options.work)
    keep_to(folder, now, "give another --output, or remove it to begin anew")


def digest(checkpoint: Path) -> str:
    """Of a checkpoint's weights."""
    found = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def train(
    options: argparse.Namespace, stage: Stage, loaded: Loaded, batches: Callable[[int], Batch], loss: Loss
) -> int:
    """Train, and write the checkpoint when the last step is done. The same command goes on where time ran out."""
    output = options.output or options.work / stage.name
    if output.exists():
        raise Error(f"'{output}' is there already; remove it to train the stage again, or give another --output")
    folder = output.with_name(f"{output.name}.training")
    pin(folder, loaded, options)
    done = training.train(
        loaded.model,
        loss,
        batches,
        schedule_of(options, stage),
        folder,
        minutes=options.minutes,
        seed=seed_of(options),
        device=options.device,
        about=stage.name,
    )
    if not done.finished:
        print(f"step {done.step} of {done.steps}, loss {done.loss:.4g}: run it again to go on")
        return 0
    save(loaded, output)
    print(f"wrote {output} after {done.steps} steps, loss {done.loss:.4g}")
    return 0
