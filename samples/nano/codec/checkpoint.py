"""The vocoder folder that `edge-sdk export --vocoder` takes: flow and hift tensors, cosyvoice3.yaml, the voice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.export.random_checkpoint.vocoder import write_voice
from edge_sdk.export.random_checkpoint.vocoder_yaml import vocoder_yaml
from edge_sdk.export.random_checkpoint.writer import new_folder
from samples.nano.codec.files import save_tensors
from samples.nano.codec.flow import Flow
from samples.nano.codec.waveform import Waveform
from samples.nano.settings import Settings

ABOUT = "drsr-nano's vocoder, trained by samples/nano from one synthetic voice. Same layout as Fun-CosyVoice3."

Array = np.ndarray[Any, Any]


def write_vocoder(folder: str | os.PathLike[str], settings: Settings, flow: Flow, waveform: Waveform) -> None:
    """Raises ExportError if the folder exists and is not empty, or cannot be written."""
    with new_folder(folder) as new:
        (new / "cosyvoice3.yaml").write_text(vocoder_yaml(settings.vocoder_spec(), ABOUT), encoding="utf-8")
        save_tensors(new / "flow.safetensors", flow)
        save_tensors(new / "hift.safetensors", waveform)
        (new / "voices").mkdir()
        write_voice(new / "voices" / f"{settings.voice}.npy", settings.seed)


def speaker(settings: Settings, folder: Path) -> Array:
    """The voice's embedding, float32 [speaker_dim]: one voice needs no more than a fixed vector, told by the seed.

    It is written below `folder`, since the file's name takes part in it.
    """
    path = folder / f"{settings.voice}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_voice(path, settings.seed)
    embedding: Array = np.load(path, allow_pickle=False)
    return embedding
