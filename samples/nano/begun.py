"""What a training was begun with: it is taken up with the same, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error
from edge_sdk.export.checkpoint import read_json
from edge_sdk.files import write_file


def keep_to(folder: Path, now: Mapping[str, Any], advice: str) -> None:
    """Write down what a run begins with in its folder, or compare with what stands there.

    Args:
        now: JSON values by name.
        advice: what to do where they differ.

    Raises:
        Error: it was begun with others; says which.
    """
    path = folder / "begun.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(now, indent=1) + "\n").encode())
        return
    before = read_json(path)
    other = [key for key in now if before.get(key) != now[key]]
    if other:
        told = ", ".join(key.replace("_", "-") for key in other)
        raise Error(f"'{folder}' was begun with another {told}; {advice}")
