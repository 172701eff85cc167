"""Where a stage finds the checkpoint of the stage before, and which command makes it."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import Error

# In the order of the recipe: folder in WORK -> what makes it. "-unmerged": stage 2 straight after stage 1.
CHECKPOINTS = {
    "start": "start",
    "text": "text",
    "prealign": "prealign",
    "cocktail1": "cocktail1",
    "merged": "merge",
    "cocktail2": "cocktail2",
    "cocktail2-unmerged": "cocktail2 --source WORK/cocktail1 -o WORK/cocktail2-unmerged",
    "dpo": "dpo",
}


def checkpoint_folder(work: Path, name: str, given: Path | None = None) -> Path:
    """The folder that the user gave, else the one that a command of the recipe made in the work folder.

    Raises:
        Error: that one is not there; says which command to run first.
    """
    path = given or work / name
    if given is None and not path.is_dir():
        advice = f": run python -m samples.nano {CHECKPOINTS[name]} first" if name in CHECKPOINTS else ""
        raise Error(f"there is no checkpoint folder at '{path}'{advice}")
    return path
