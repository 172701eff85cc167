"""Dialogues in files: one JSON object a line, tools by their names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error
from samples.nano.texts.dialogues import Dialogue, Turn
from samples.nano.texts.tools import TOOLS, call

MIXED = "mixed.jsonl"  # sentences for drills alone; older texts have none


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for dialogue in dialogues:
            file.write(json.dumps(_to_json(dialogue), ensure_ascii=False) + "\n")


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """Raises Error: there is no such file, or a line of it is none of ours."""
    if not path.is_file():
        raise Error(f"there is no '{path}': run python -m samples.nano texts first")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as e:
                raise Error(f"'{path}', line {number}: not a dialogue ({e}); write the texts again") from e


def read_mixed(texts: Path) -> list[Dialogue]:
    """Of a folder of texts; empty where it has none."""
    path = texts / MIXED
    return list(read_dialogues(path)) if path.is_file() else []


def _to_json(dialogue: Dialogue) -> dict[str, Any]:
    turns = [
        {
            "role": t.role,
            "text": t.text,
            **(
                {"tool_calls": [{"name": c.name, "arguments": c.arguments} for c in t.tool_calls]}
                if t.tool_calls
                else {}
            ),
            **({"facts": t.facts} if t.facts else {}),
            **({"template": t.template} if t.template else {}),
            **({"values": t.values} if t.values else {}),
        }
        for t in dialogue.turns
    ]
    return {
        "id": dialogue.id,
        "split": dialogue.split,
        "task": dialogue.task,
        **({"system": dialogue.system} if dialogue.system is not None else {}),
        "tools": [tool["function"]["name"] for tool in dialogue.tools],
        "turns": turns,
    }


def _from_json(value: dict[str, Any]) -> Dialogue:
    turns = tuple(
        Turn(
            t["role"],
            t["text"],
            tuple(call(c["name"], n, **c["arguments"]) for n, c in enumerate(t.get("tool_calls", ()), 1)),
            tuple(t.get("facts", ())),
            t.get("template", ""),
            t.get("values", ""),
        )
        for t in value["turns"]
    )
    tools = tuple(TOOLS[name] for name in value["tools"])
    return Dialogue(value["id"], value["split"], value["task"], value.get("system"), tools, turns)
