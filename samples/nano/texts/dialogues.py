"""Dialogues from a seed: scenes of the domain, chained, with the tools they need and some they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from edge_sdk.prompt import SYSTEM_SPEECH
from samples.nano.texts.tools import TOOLS

Split = Literal["train", "held_out"]
MAX_SCENES = 3


@dataclass(frozen=True)
class Turn:
    """One turn.

    Attributes:
        facts: what an assistant's answer must say; "a|b" is either. See `checker`.
        template: the grammar's section and line it was made from, "ask timers.set: set a timer for {length}".
        values: what was drawn for it, as the held-out rule sees it; "" if nothing was.
    """

    role: Literal["user", "assistant", "tool"]
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    facts: tuple[str, ...] = ()
    template: str = ""
    values: str = ""

    @property
    def act(self) -> str:
        """What it is about: "timers.set"."""
        return self.template.partition(":")[0].partition(" ")[2]


@dataclass(frozen=True)
class Scene:
    """A few turns about one thing.

    Attributes:
        needs, lacks: tools that must be offered, and that must not.
        keeps: state that lives in the turns ("list"); a dialogue has one scene of each.
    """

    turns: tuple[Turn, ...]
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    system: str | None = None
    keeps: str = ""


@dataclass(frozen=True)
class Dialogue:
    """`system` None is the SDK's own; `tools` are OpenAI schemas, as `edge_sdk.Chat(tools=...)` takes them."""

    id: str
    split: Split
    task: str
    system: str | None
    tools: tuple[dict[str, Any], ...]
    turns: tuple[Turn, ...]


def dialogues(seed: int, count: int, split: Split) -> Iterator[Dialogue]:
    """The first `count` dialogues of a seed; the n-th does not depend on how many are asked for."""
    if split not in ("train", "held_out"):
        raise Error(f"a split is 'train' or 'held_out', found {split!r}")
    for n in range(count):
        yield dialogue(seed, n, split)


def dialogue(seed: int, number: int, split: Split) -> Dialogue:
    from samples.nano.texts.scenes import SCENES, Draw

    random = Random(f"{seed}/{split}/{number}")
    draw = Draw(random, split == "held_out")
    tasks = random.choices(list(SCENES), k=random.choice((1, 1, 2, MAX_SCENES)))
    scenes: list[tuple[str, Scene]] = []
    for task in tasks:
        scene = random.choice(SCENES[task])(draw)
        if _go_together([*(s for _, s in scenes), scene]):
            scenes.append((task, scene))
    return Dialogue(
        id=f"{split}-{seed}-{number:06}",
        split=split,
        task=scenes[0][0] if len({task for task, _ in scenes}) == 1 else "mixed",
        system=next((s.system for _, s in scenes if s.system), None),
        tools=_offered([s for _, s in scenes], random),
        turns=tuple(turn for _, s in scenes for turn in s.turns),
    )


def _go_together(scenes: list[Scene]) -> bool:
    """No tool both needed and lacking, one system prompt at most, no two scenes of a kind or that keep one state."""
    needs = {name for s in scenes for name in s.needs}
    lacks = {name for s in scenes for name in s.lacks}
    acts = [s.turns[0].act for s in scenes]
    systems, kept = [s.system for s in scenes if s.system], [s.keeps for s in scenes if s.keeps]
    return not needs & lacks and len(systems) < 2 and all(len(set(x)) == len(x) for x in (acts, kept))


def _offered(scenes: list[Scene], random: Random) -> tuple[dict[str, Any], ...]:
    needs = {name for s in scenes for name in s.needs}
    lacks = {name for s in scenes for name in s.lacks}
    others = [name for name in TOOLS if name not in needs | lacks]
    extra = random.sample(others, random.choice((0, 0, 1, 2)))
    return tuple(TOOLS[name] for name in TOOLS if name in needs or name in extra)


def system_with(note: str) -> str:
    """The SDK's system prompt and a developer's sentence."""
    return f"{SYSTEM_SPEECH} {note}"
