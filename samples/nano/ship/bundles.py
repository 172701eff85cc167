"""The bundles that are scored and shipped: one of each kind in WORK/bundles, made anew when its sources change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from edge_sdk.errors import Error
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.files import write_file
from edge_sdk.tensorfile import TensorFile
from samples.nano.codec.folders import VOCODER
from samples.nano.model.replies import GENERATION, settle
from samples.nano.needed import CHECKPOINTS
from samples.nano.stages.stage import digest
from samples.nano.voices.packages import file_sha256

NAME = "drsr-nano"
NOTE = (
    "A small model trained as a demo of the machinery: English, one voice, a narrow domain (time, timers, lights, "
    "units, sums, lists, weather through a tool, small talk). What it can and can't do: MODEL_CARD.md beside it."
)
FOLDER = "bundles"
STAGES = tuple(name for name in reversed(CHECKPOINTS) if not name.endswith("-unmerged"))  # the last of the recipe first
NOISE_FRAMES = 1500  # 30 s, then the vocoder's caches restart: all 15,000 columns would be 4.8 MB of 30
PAGE = 4096  # most weights are of some hundred KB: 64 KiB borders would be a tenth of the file
_HERE = Path(__file__).parent
_SMALL = ExportOptions(name=NAME, notes=(NOTE,), noise_frames=NOISE_FRAMES, page=PAGE, one_file=True, overwrite=True)
# What the SDK's recipes leave wide: the flow's small layers, and all convolutions. Two kinds of these are float16: the
# one that makes the spectrum, whose logarithms an error is heard in, and f0's, whose errors the phase adds up
# (docs/NOTES.md).
_SMALL_PARTS = str(_HERE / "small.json")
KINDS: Mapping[str, ExportOptions] = MappingProxyType(
    {
        "fp32": _SMALL,
        "int8": dataclasses.replace(_SMALL, precision="int8", recipe=_SMALL_PARTS),
        # int8 but for the backbone's feed-forward layers, which are int4 in blocks of 32: what 30 MB have room for
        "mixed": dataclasses.replace(_SMALL, precision="int8", recipe=str(_HERE / "mixed.json")),
        "int4": dataclasses.replace(_SMALL, precision="int4", recipe=_SMALL_PARTS),
    }
)
_PARTS = {  # beginnings of the tensors' names
    "encoder": "continuous_audio_tower.",
    "backbone": "language_model.",
    "grouping": "audio_tower.",
    "speech head": "audio_invert_tower.",
}


@dataclass(frozen=True)
class Made:
    """A bundle and what it was made of."""

    kind: str
    path: Path
    record: dict[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.record["sha256"])


def newest_checkpoint(work: Path) -> Path:
    """Of the recipe's stages the last that was finished.

    Raises:
        Error: there is none.
    """
    for name in STAGES:
        if (work / name / "config.json").is_file():
            return work / name
    raise Error(f"'{work}' has none of the checkpoints {', '.join(STAGES)}: run python -m samples.nano start first")


def make(work: Path, kind: str, checkpoint: Path) -> Made:
    """The bundle of a kind from a checkpoint and WORK/vocoder; kept where it is of these weights.

    Raises:
        Error: there is no vocoder yet, or what the export says.
    """
    vocoder, path = work / VOCODER, work / FOLDER / f"{kind}.bundle"
    if not (vocoder / "cosyvoice3.yaml").is_file():
        raise Error(f"there is no vocoder in '{vocoder}': run python -m samples.nano vocoder first")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = KINDS[kind]
    rules = json.loads(Path(options.recipe).read_text(encoding="utf-8")) if options.recipe else None
    told = {**dataclasses.asdict(options), "recipe": rules}
    made_of = {"checkpoint": checkpoint.name, "weights": digest(checkpoint), "vocoder": digest(vocoder)} | {
        "options": told
    }
    record = path.with_suffix(".json")
    before = read_record(record)
    wanted = json.loads(json.dumps(made_of))
    if path.is_file() and before.get("made_of") == wanted and before.get("sha256") == file_sha256(path):
        return Made(kind, path, before)
    voice = next(iter(sorted((vocoder / "voices").glob("*.npy"))))
    with settled(checkpoint) as source:
        export_bundle(source, vocoder, path, options, voices={voice.stem: voice})
    found = {
        "made_of": wanted,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "parameters": parameters(checkpoint, vocoder),
    }
    write_file(record, (json.dumps(found, indent=1) + "\n").encode())
    return Made(kind, path, found)


@contextmanager
def settled(checkpoint: Path) -> Iterator[Path]:
    """The checkpoint with how it replies in it, as links: one that was begun before `start` wrote that stays as it is,
    since stages compare what they merge and take up."""
    with TemporaryDirectory(prefix="nano-") as place:
        folder = Path(place) / checkpoint.name
        folder.mkdir()
        for path in checkpoint.resolve().iterdir():
            (folder / path.name).symlink_to(path)
        own = folder / GENERATION
        content = own.read_bytes()
        own.unlink()
        own.write_bytes(content)
        settle(folder)
        yield folder


def read_record(path: Path) -> dict[str, Any]:
    """{} where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def parameters(checkpoint: Path, vocoder: Path) -> dict[str, int]:
    """Values of each part's tensors as the checkpoint stores them."""
    out = {}
    opened = Checkpoint(checkpoint)
    try:
        for part, prefix in _PARTS.items():
            out[part] = sum(_count(opened.entry(name).shape) for name in opened if name.startswith(prefix))
    finally:
        opened.close()
    for part, name in (("flow", "flow"), ("waveform", "hift")):
        file = TensorFile(vocoder / f"{name}.safetensors", Error)
        try:
            out[part] = sum(_count(entry.shape) for entry in file.entries.values())
        finally:
            file.close()
    return out


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
