"""Writes the model card of a scored bundle: what it is, how it was measured, what it was made from, licences.

Its numbers are those of WORK/score/score.json, its words those of samples/nano/ship/card.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from edge_sdk.errors import Error
from edge_sdk.files import write_file
from samples.nano.ship import bundles, table
from samples.nano.ship.questions import NATURAL
from samples.nano.ship.score import FILE, FOLDER
from samples.nano.voices.packages import HIBARI, WHISPER_TINY_EN

NAME = "MODEL_CARD.md"
_TEMPLATE = Path(__file__).with_name("card.md")
_LICENCES = {"espeak-ng": "GPL-3, nothing of it is shipped", "flite": "BSD-like, nothing of it is shipped"}

Score = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", choices=tuple(bundles.KINDS), required=True, help="which of the scored bundles")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {NAME} beside the bundle, in WORK/bundles")


def run(options: argparse.Namespace) -> int:
    output = options.output or options.work / bundles.FOLDER / NAME
    write_file(output, card(read_score(options.work), options.bundle).encode())
    print(f"wrote {output}")
    return 0


def read_score(work: Path) -> dict[str, Any]:
    """Raises Error: nothing was scored."""
    path = work / FOLDER / FILE
    score = bundles.read_record(path)
    if "bundles" not in score:
        raise Error(f"there is no score in '{path}': run python -m samples.nano score first")
    return score


def card(score: Score, kind: str) -> str:
    """The card's Markdown.

    Raises:
        Error: this bundle was not scored.
    """
    if kind not in score["bundles"]:
        raise Error(f"the bundle '{kind}' was not scored; there is {', '.join(score['bundles'])}")
    made, asked = score["bundles"][kind], score["asked"]
    natural = [r for r in score["rows"] if r["bundle"] == kind and r["condition"] == NATURAL]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        checkpoint=score["made_from"]["checkpoint"],
        preset=asked["preset"],
        kind=kind,
        file=_file(kind, made),
        parts=table.markdown([["part", "parameters"], *([p, f"{n:,}"] for p, n in made["parameters"].items())]),
        gates=table.markdown(table.gates_table({kind: score["gates"][kind]})),
        rows=table.markdown(table.rows_table(score["rows"])),
        tasks=table.markdown(table.parts_table(natural, "tasks")) if natural else "(not measured)",
        recordings=_recordings(score, kind),
        speed=_speed(score),
        stages=_stages(score["made_from"].get("stages", {})),
        data="\n".join(f"- {line}" for line in _data(score["made_from"])) or "(no record was kept)",
        programs="".join(_programs(score["made_from"])),
        hibari=HIBARI[0],
        whisper=WHISPER_TINY_EN[0],
        **{name: asked[name] for name in ("count", "heard", "seed")},
    )


def _file(kind: str, made: Score) -> str:
    options = made["made_of"]["options"]
    lines = [
        f"Kind `{kind}`: precision {options['precision']} in blocks of {options['block']}, {made['bytes']:,} bytes.",
        f"sha256 of the bundle `{made['sha256']}`,",
        f"of the checkpoint's tensors `{made['made_of']['weights']}`,",
        f"of the vocoder's `{made['made_of']['vocoder']}`.",
    ]
    rules = options["recipe"]["rules"] if options["recipe"] else []
    told = [
        f"`{r['match']}`{' of the ' + r['of'] if 'of' in r else ''} {r['scheme']}"
        f"{' in blocks of {}'.format(r['block']) if 'block' in r else ''}"
        for r in rules
    ]
    return "\n".join(lines + ([f"Rules before the precision's own: {'; '.join(told)}."] if told else []))


def _recordings(score: Score, kind: str) -> str:
    rows = [row for row in score["recordings"] if row["bundle"] == kind]
    if not rows:
        return ""
    about = "Recordings that no part of the recipe made, each asked for its call and for its answer after the call:"
    return f"{about}\n\n{table.markdown(table.parts_table(rows, 'groups'))}\n\n"


def _speed(score: Score) -> str:
    spoken = {kind: found for kind, found in score["speed"].items() if found.get("replies")}
    if not spoken:
        return ""
    told = next(iter(spoken.values()))
    about = (
        f"Speed on {told['machine']}, {told['threads']} threads, load {told['load']}: milliseconds from the end of the "
        "question to the first sound (the median), and seconds of work for a second of sound (RTF), in all and by "
        "stage:"
    )
    return f"{about}\n\n{table.markdown(table.speed_table(spoken))}\n\n"


def _stages(found: Score) -> str:
    if not found:
        return ""
    about = (
        "What each stage of the recipe brought (`python -m samples.nano evaluate`, in fp32): success on ordinary "
        "text, on the domain in text, on spoken questions, on noisy ones; word errors; cross entropy of ordinary "
        "text's answers:"
    )
    return f"{about}\n\n{table.markdown(table.stages_table(found))}\n\n"


def _data(made: Score) -> Iterator[str]:
    texts, speech = made.get("texts", {}), made.get("speech", {})
    for split, name in (("train", "training"), ("held_out", "evaluation")):
        if split in texts:
            t = texts[split]
            yield (
                f"Texts for {name} (seed {texts['seed']}): {t['dialogues']:,} dialogues, {t['turns']:,} turns, "
                f"{t['different_user_turns']:,} different questions, {t['phrasings']:,} phrasings."
            )
    if "plain_train" in texts:
        yield f"Text-only tasks for the backbone: {texts['plain_train']['dialogues']:,}."
    for name, what in (("replies", "replies in one voice"), ("users", "questions of users")):
        if "clips" in speech.get(name, {}):
            yield f"Synthetic speech: {speech[name]['clips']:,} {what}."
    runs = made.get("training", {})
    if runs:
        yield "Optimizer steps: " + ", ".join(f"{name} {run['step']:,}" for name, run in runs.items()) + "."
    if made.get("merge"):
        yield f"The merge: `{json.dumps(made['merge'], sort_keys=True)}`."


def _programs(made: Score) -> Iterator[str]:
    used = made.get("speech", {}).get("users", {}).get("recipe", {}).get("programs", {})
    for name, version in used.items():
        yield f"| {name} {version} | some of the users | {_LICENCES.get(name, 'see the program')} |\n"
