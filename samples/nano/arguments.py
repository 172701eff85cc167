"""Types of options, for argparse: what a command cannot use is wrong usage, said before anything is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def _number(most: float, want: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= most:  # not a number is neither
            raise argparse.ArgumentTypeError(f"must be {want}, found '{text}'")
        return value

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, found '{text:.40}'")
        return value

    return parse


minutes = _number(math.inf, "a number of minutes from 0 up")
weight = _number(1e6, "a number from 0 to 1e6")
share = _number(1.0, "a number from 0 to 1")
lead_steps = _whole(0, 100)  # 20 s of silence
rows = _whole(1, 4096)  # sequences or pieces of a step: a batch is made whole in memory
takes = _whole(1, 1000)
positions = _whole(0, 4096)  # of a prompt
seed = _whole(0, (1 << 63) - 1)
