"""Measures checkpoints: what they forgot of text, how often they do what was asked; prints the ablation table.

Each checkpoint is exported and asked through edge_sdk.Chat, greedily; answers are judged by the grammar's checker.

    text     questions of ordinary text (plain_held_out), in text alone: what the backbone knew before it spoke
    domain   held-out dialogues, in text alone
    spoken   the same dialogues, questions and answers spoken, as `render` draws people, rooms and noises
    noisy    the same at one level of noise: render --set users --split held_out --snr 5 --out WORK/speech-noisy
    nats     cross entropy of the ordinary text's answers, a token
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edge_sdk.errors import Error
from samples.nano.stages.asking import Answered, ask, exported
from samples.nano.stages.data import Item, Sounds
from samples.nano.stages.examples import Prompter, written
from samples.nano.texts.store import read_dialogues

# In the order of the recipe; those that exist are measured. "-unmerged": stage 2 straight after stage 1.
STAGES = ("text", "prealign", "cocktail1", "merged", "cocktail2", "cocktail2-unmerged", "dpo")
BATCH = 32
COLUMNS = ("text", "domain", "spoken", "noisy", "nats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", nargs="*", metavar="NAME", help=f"in WORK (default: those of {', '.join(STAGES)})"
    )
    parser.add_argument("--count", type=int, default=200, help="questions of each kind (default: %(default)s)")
    parser.add_argument("--no-sound", action="store_true", help="only what needs no rendered speech")
    parser.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    names = options.checkpoints or [name for name in STAGES if (options.work / name / "config.json").is_file()]
    if not names:
        raise Error(f"'{options.work}' has none of the checkpoints {', '.join(STAGES)}")
    sounds = {} if options.no_sound else open_sounds(options.work)
    table = {name: measure(options.work / name, options.work / "texts", options.count, sounds) for name in names}
    (options.work / "evaluation.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table) if options.json else readable(table))
    return 0


def open_sounds(work: Path) -> dict[str, Sounds]:
    """Held-out questions by column; those at one noise level only where they were rendered."""
    from samples.nano.stages.sources import RenderedSounds

    folders = {"spoken": work / "speech" / "users", "noisy": work / "speech-noisy" / "users"}
    return {
        name: RenderedSounds(folder, "held_out", {})
        for name, folder in folders.items()
        if name == "spoken" or folder.is_dir()
    }


def measure(checkpoint: Path, texts: Path, count: int, sounds: Mapping[str, Sounds]) -> dict[str, float]:
    """A row of the table: shares from 0 to 1, nats."""
    plain = items(texts / "plain_held_out.jsonl", count)
    domain = items(texts / "held_out.jsonl", count)
    with exported(checkpoint) as bundle:
        row = {"text": share(ask(bundle, plain, speech=False)), "domain": share(ask(bundle, domain, speech=False))}
        row |= {name: share(ask(bundle, domain, speech=True, sounds=heard)) for name, heard in sounds.items()}
    return {**row, "nats": nats(checkpoint, plain)}


def items(path: Path, count: int) -> list[Item]:
    """The first `count` assistant turns of a file."""
    found = (Item(d, n) for d in read_dialogues(path) for n, t in enumerate(d.turns) if t.role == "assistant")
    return [item for item, _ in zip(found, range(count), strict=False)]


def share(answers: Iterable[Answered]) -> float:
    judged = [answer.success for answer in answers]
    return sum(judged) / max(1, len(judged))


def nats(checkpoint: Path, asked: Sequence[Item]) -> float:
    """Mean cross entropy of the answers in text alone."""
    import torch

    from samples.nano.model.batch import collate
    from samples.nano.model.checkpoint import load
    from samples.nano.stages.loss import score

    loaded = load(checkpoint)
    prompter = Prompter(checkpoint, loaded.config)
    total, count = 0.0, 0
    for at in range(0, len(asked), BATCH):
        batch = collate(
            [written(prompter, i.dialogue, i.number, prompt_weight=0.0) for i in asked[at : at + BATCH]], loaded.config
        )
        with torch.no_grad():
            scores, _ = score(loaded.model, batch)
        total, count = total - float(scores.log_probs.sum()), count + len(scores.log_probs)
    return total / max(1, count)


def readable(table: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':<20}" + "".join(f"{column:>9}" for column in COLUMNS)]
    for name, row in table.items():
        cells = ["-" if c not in row else f"{row[c]:.3f}" if c == "nats" else f"{100 * row[c]:.1f} %" for c in COLUMNS]
        lines.append(f"{name:<20}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)
