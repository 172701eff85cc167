"""How the trained model replies: greedily and without a penalty, as it was trained and is measured.

It stands in the checkpoint's generation_config.json, so an exported bundle carries it and `edge_sdk.Chat` takes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edge_sdk.export.checkpoint import read_json
from edge_sdk.files import write_file
from edge_sdk.generation import SECTION
from samples.nano.settings import FLOW_STEPS

GENERATION = "generation_config.json"
# A penalty would forbid what a steady vowel is made of: the same code again. The grammar's longest reply takes half of
# the ids. The flow's guidance is the vocoder's to tell.
REPLIES: Mapping[str, Any] = MappingProxyType(
    {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 160, "vocoder_steps": FLOW_STEPS}
)


def settle(checkpoint: Path) -> None:
    """Write them into a checkpoint folder that does not say yet how it replies."""
    path = checkpoint / GENERATION
    found = read_json(path)
    if SECTION not in found:
        write_file(path, (json.dumps({**found, SECTION: dict(REPLIES)}, indent=2) + "\n").encode())
