"""How many different turns a set of dialogues has, and whether anything held out stands in training."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from samples.nano.texts.dialogues import Dialogue


@dataclass
class Statistics:
    """Counts of one set; texts are kept, so that different ones can be counted."""

    dialogues: int = 0
    turns: int = 0
    asked: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by task: "timers"
    answered: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    phrasings: set[str] = field(default_factory=set)
    values: set[tuple[str, str]] = field(default_factory=set)

    def add(self, dialogue: Dialogue) -> None:
        self.dialogues += 1
        for turn in dialogue.turns:
            self.turns += 1
            if turn.role == "user":
                self.asked[turn.act.partition(".")[0]].add(turn.text)
                self.phrasings.add(turn.template)
                if turn.values:
                    self.values.add((turn.act, turn.values))
            elif turn.role == "assistant" and turn.tool_calls:
                self.called.update(c.raw for c in turn.tool_calls)
            elif turn.role == "assistant":
                self.answered.add(turn.text)

    def report(self) -> dict[str, Any]:
        return {
            "dialogues": self.dialogues,
            "turns": self.turns,
            "different_user_turns": sum(map(len, self.asked.values())),
            "different_replies": len(self.answered),
            "different_tool_calls": len(self.called),
            "phrasings": len(self.phrasings),
            "user_turns_by_task": {task: len(texts) for task, texts in sorted(self.asked.items())},
        }


def leaks(train: Statistics, held_out: Statistics) -> list[str]:
    """Phrasings, values and whole questions of one set that stand in the other as well. Phrasings of sections too small
    to be split (one or two lines) do not count."""
    from samples.nano.texts.grammar import lines

    both = sorted(t for t in train.phrasings & held_out.phrasings if len(lines(t.partition(":")[0])) > 2)
    questions = {text for texts in train.asked.values() for text in texts}
    both += sorted(text for texts in held_out.asked.values() for text in texts if text in questions)
    return both + [f"{act} {values}" for act, values in sorted(train.values & held_out.values)]
