"""The reference's recordings of the language half: cases, arrays, and how a case becomes a prompt."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.generation import GenerationConfig
from edge_sdk.prompt import Clip, Message

HERE = Path(__file__).parent
CHECKPOINT = HERE / "golden" / "drsr-tiny"
ARRAYS = HERE / "golden" / "speech"
AUDIO = HERE / "audio"
SAMPLES = HERE.parent / "samples" / "audio"  # the question of `make demo` is there
PLACEHOLDER = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@lru_cache
def index() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ARRAYS / "golden.json").read_text())
    return found


def greedy_cases() -> list[str]:
    return [name for name, case in index()["cases"].items() if case["kind"] != "sampled"]


def sampled_cases() -> list[str]:
    return [name for name, case in index()["cases"].items() if case["kind"] == "sampled"]


def clips() -> list[str]:
    return list(index()["audio"])


def case(name: str) -> dict[str, Any]:
    found: dict[str, Any] = index()["cases"][name]
    return found


def arrays(name: str) -> Any:
    return np.load(ARRAYS / f"{name}.npz")


def recording(clip: str) -> Path:
    return next(path for folder in (AUDIO, SAMPLES) for path in folder.glob(f"{clip}.*"))


def speaks(name: str) -> bool:
    return not case(name)["sp_gen_kwargs"]["disable_speech"]


def config(name: str) -> GenerationConfig:
    """The case's settings in our words."""
    settings, speech = case(name)["gen_kwargs"], case(name)["sp_gen_kwargs"]
    return GenerationConfig(
        max_new_tokens=settings["max_new_tokens"],
        do_sample=settings["do_sample"],
        temperature=settings.get("temperature", 1.0),
        top_p=settings.get("top_p", 1.0),
        top_k=settings.get("top_k", 0),
        repetition_penalty=settings.get("repetition_penalty", 1.0),
        bad_words=tuple(tuple(w) for w in settings.get("bad_words_ids", ())),
        text_greedy=speech["text_greedy"],
        force_audio_bos=speech["force_text_abos"],
        seed=0,
    )


def messages(name: str, encoded: dict[str, Clip]) -> list[Message]:
    """The case's conversation as our messages."""
    waiting = iter(case(name)["audio"])
    out = []
    for turn in case(name)["conversation"]:
        text, trusted = turn["content"], turn["role"] == "system"
        pieces: list[Any] = []
        for n, part in enumerate(text.split(PLACEHOLDER)):
            if n:
                pieces.append(encoded[next(waiting)])
            if part:
                pieces.append((part, trusted))
        out.append(Message(turn["role"], tuple(pieces)))
    return out
