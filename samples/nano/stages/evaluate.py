"""Measures checkpoints: what they forgot of text, how often they do what was asked; prints the ablation table.

Each checkpoint is exported and asked through edge_sdk.Chat, greedily; answers are judged by the grammar's checker and
written to WORK/evaluation, one file for each column.

    text     questions of ordinary text (plain_held_out), in text alone: what the backbone knew before it spoke
    domain   held-out dialogues, in text alone
    spoken   the same dialogues, questions and answers spoken, as `render` draws people, rooms and noises
    noisy    the same at one level of noise: render --set users --split held_out --snr 5 --out WORK/speech-noisy
    wer      word errors of Whisper tiny.en's ear against the spoken answers' own text (with --listen)
    nats     cross entropy of the ordinary text's answers, a token
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edge_sdk.commands.output import progress
from edge_sdk.errors import Error
from samples.nano.needed import CHECKPOINTS, checkpoint_folder
from samples.nano.stages.asking import Answered, ask, exported
from samples.nano.stages.data import Item, Sounds
from samples.nano.stages.examples import Prompter, written
from samples.nano.texts.store import read_dialogues

STAGES = tuple(name for name in CHECKPOINTS if name != "start")  # those that exist are measured
COLUMNS = ("text", "domain", "spoken", "noisy", "wer", "nats")
BATCH = 32

Row = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(STAGES)
    parser.add_argument("checkpoints", nargs="*", metavar="NAME", help=f"folders in WORK (default: those of {names})")
    parser.add_argument("--count", type=int, default=200, help="questions of each kind (default: %(default)s)")
    parser.add_argument("--no-sound", action="store_true", help="only what needs no rendered speech")
    parser.add_argument(
        "--listen", action="store_true", help="have the answers' sound written down: needs WORK/vocoder"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace) -> int:
    names = options.checkpoints or [name for name in STAGES if (options.work / name / "config.json").is_file()]
    if not names:
        raise Error(
            f"'{options.work}' has none of the checkpoints {', '.join(STAGES)}: run python -m samples.nano text first"
        )
    if options.count < 1:
        raise Error(f"--count must be at least 1, found {options.count}")
    sounds = {} if options.no_sound else open_sounds(options.work)
    plain, domain = (
        items(options.work / "texts" / f"{n}.jsonl", options.count) for n in ("plain_held_out", "held_out")
    )
    vocoder = options.work / "vocoder" if options.listen else None
    folders = {name: checkpoint_folder(options.work, name) for name in names}
    table = {}
    for name, checkpoint in folders.items():
        answers = options.work / "evaluation" / name
        answers.mkdir(parents=True, exist_ok=True)
        table[name] = measure(checkpoint, plain, domain, sounds, answers, vocoder)
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


def measure(
    checkpoint: Path,
    plain: Sequence[Item],
    domain: Sequence[Item],
    sounds: Mapping[str, Sounds],
    answers: Path,
    vocoder: Path | None,
) -> Row:
    """A row of the table: shares from 0 to 1, nats.

    Args:
        answers: folder that keeps what was answered.
        vocoder: speaks the answers to be listened to; None: nobody listens.
    """
    row: Row = {}
    with exported(checkpoint, vocoder) as bundle:
        for column, asked in (("text", plain), ("domain", domain)):
            row[column] = share(kept(ask(bundle, asked, speech=False), answers / f"{column}.jsonl", len(asked)))
        for column, heard in sounds.items():
            found = kept(ask(bundle, domain, speech=True, sounds=heard), answers / f"{column}.jsonl", len(domain))
            row[column] = share(found)
            if vocoder is not None and column == "spoken":
                row["wer"] = heard_errors(found)
    return {**row, "nats": nats(checkpoint, plain)}


def items(path: Path, count: int) -> list[Item]:
    """The first `count` assistant turns of a file."""
    found = (Item(d, n) for d in read_dialogues(path) for n, t in enumerate(d.turns) if t.role == "assistant")
    return [item for item, _ in zip(found, range(count), strict=False)]


def kept(answers: Iterable[Answered], path: Path, total: int) -> list[Answered]:
    """The answers, written to a file as they come."""
    show, out = progress(), []
    with path.open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(answer.record(), ensure_ascii=False) + "\n")
            out.append(answer)
            show(f"{path.parent.name}: {path.stem}", len(out), total)
    return out


def share(answers: Sequence[Answered]) -> float:
    return sum(answer.success for answer in answers) / max(1, len(answers))


def heard_errors(answers: Sequence[Answered]) -> float:
    """Word error rate of all that was said, by another model's ear. What has no sound was not heard."""
    from samples.nano.voices.judge import Errors, Judge, word_errors

    judge, total = Judge(), Errors(0, 0)
    for reply in (answer.reply for answer in answers):
        if reply.text.strip():
            heard = judge.hear(reply.audio, reply.sample_rate) if len(reply.audio) else ""
            total += word_errors(reply.text, heard)
    return total.rate


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
        part = [written(prompter, i.dialogue, i.number, prompt_weight=0.0) for i in asked[at : at + BATCH]]
        with torch.no_grad():
            scores, _ = score(loaded.model, collate(part, loaded.config))
        total, count = total - float(scores.log_probs.sum()), count + len(scores.log_probs)
    return total / max(1, count)


def readable(table: Mapping[str, Row]) -> str:
    lines = [f"{'':<20}" + "".join(f"{column:>9}" for column in COLUMNS)]
    for name, row in table.items():
        cells = ["-" if c not in row else f"{row[c]:.3f}" if c == "nats" else f"{100 * row[c]:.1f} %" for c in COLUMNS]
        lines.append(f"{name:<20}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)
