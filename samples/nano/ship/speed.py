"""How fast a bundle is on this machine: `edge-sdk bench`, and spoken questions fed as they would be spoken."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edge_sdk
from edge_sdk.bench import bench
from edge_sdk.commands.output import progress
from samples.nano.stages.asking import CONTEXT_TOKENS, INPUT_RATE_HZ, quiet, turns
from samples.nano.stages.data import Item, Sounds
from samples.nano.stages.examples import system_words

PIECE_S = 0.1  # of sound that is fed at once
WARM_UP = 1  # questions that are not counted: the first one opens sessions and touches memory
STAGES = ("encode", "prefill", "backbone", "speech_head", "flow", "waveform")  # of edge_sdk.Timings


def measure(path: Path, items: Sequence[Item], sounds: Sounds, threads: int | None, steps: int = 200) -> dict[str, Any]:
    """Machine, `edge-sdk bench`'s stages and, over the answers that were spoken, ms to the first sound after the end of
    the question and seconds of work for a second of sound, in all and by stage.

    Args:
        items: what is asked; each must end with a user's turn that `sounds` has.
        steps: of bench's long reply.
    """
    with edge_sdk.Bundle.open(path) as bundle:
        found = bench(bundle, threads=threads, steps=steps, report=progress())
        timings = [t for t in _replies(bundle, items, sounds, threads) if t.audio_s][WARM_UP:]
    cores = len(os.sched_getaffinity(0))
    told = {"machine": f"{_cpu()}, {cores} cores", "threads": found["threads"], "stages": found["stages"]}
    return {**told, "load": round(os.getloadavg()[0], 2), **(_spoken(timings) if timings else {"replies": 0})}


def _replies(
    bundle: edge_sdk.Bundle, items: Sequence[Item], sounds: Sounds, threads: int | None
) -> Iterator[edge_sdk.Timings]:
    show = progress()
    with edge_sdk.Chat(bundle, threads=threads, context_tokens=CONTEXT_TOKENS) as chat, quiet():
        for n, item in enumerate(items, 1):
            pcm = sounds.question(item.dialogue.turns[item.number - 1].text, 0)
            if pcm is None:
                continue
            chat.configure(system=system_words(item.dialogue.system, True), tools=list(item.dialogue.tools))
            chat.edit(turns(chat, Item(item.dialogue, item.number - 1), sounds))
            turn = chat.begin_turn(INPUT_RATE_HZ)
            size = round(PIECE_S * INPUT_RATE_HZ)
            for at in range(0, len(pcm), size):
                turn.feed(pcm[at : at + size])
            with turn.finish() as events:
                for _ in events:
                    pass
            show("speed", n, len(items))
            if events.reply is not None:
                yield events.reply.timings


def _spoken(timings: Sequence[edge_sdk.Timings]) -> dict[str, Any]:
    sound_s = sum(t.audio_s for t in timings)
    first = np.percentile([t.ttfa_ms for t in timings if t.ttfa_ms is not None], (50, 95))
    return {
        "replies": len(timings),
        "sound_s": round(sound_s, 2),
        "first_sound_ms": {"p50": round(float(first[0]), 1), "p95": round(float(first[1]), 1)},
        "rtf": round(sum(t.total_ms for t in timings) / 1e3 / sound_s, 4),
        "rtf_by_stage": {
            stage: round(sum(getattr(t, f"{stage}_ms") for t in timings) / 1e3 / sound_s, 4) for stage in STAGES
        },
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
