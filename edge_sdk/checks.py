"""What callers hand over, checked once at the border: what comes back is of the plain type, or an Error says why."""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_sdk.errors import Error

MAX_CFG_RATE = 100.0  # far above any use; the flow's float32 sums stay finite

_HALVES = re.compile("[\ud800-\udfff]")  # halves of UTF-16 pairs: a str can hold them, no encoding can

_Choice = TypeVar("_Choice", bound=str)


def check_text(name: str, value: Any) -> str:
    """A string that can be encoded."""
    if not isinstance(value, str):
        raise Error(f"{name} must be a string, found {type(value).__name__}")
    half = _HALVES.search(value)
    if half:
        raise Error(
            f"{name} holds a lone surrogate (U+{ord(half.group()):04X}) at position {half.start()}, "
            "which is half a character: decode it as UTF-8, or replace it"
        )
    return value


def without_halves(text: str) -> str:
    """`text` as any encoding takes it: two halves that belong together are joined, a lone one becomes U+FFFD."""
    if not _HALVES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_choice(name: str, value: _Choice, choices: tuple[str, ...]) -> _Choice:
    if not isinstance(value, str) or value not in choices:
        raise Error(f"{name} must be {' or '.join(map(repr, choices))}, found {value!r}")
    return value


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise Error(f"{name} must be True or False, found {value!r}")
    return bool(value)


def check_whole(name: str, value: Any, least: int, below: int | None = None, want: str = "") -> int:
    """An integer of Python's or NumPy's, from `least` on and below `below`; `want` says it in other words."""
    found = None
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        found = operator.index(value)
    if found is None or found < least or (below is not None and found >= below):
        raise Error(f"{name} must be {want or f'an integer of at least {least}'}, found {_shown(value)}")
    return found


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, want: str = "") -> float:
    """A finite real number of Python's or NumPy's, as a float; `want` says the bounds in other words."""
    found = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
    if not math.isfinite(found) or not least <= found <= most:
        raise Error(f"{name} must be {want or 'a finite number'}, found {_shown(value)}")
    return found


def check_cfg_rate(name: str, value: Any) -> float:
    """Strength of classifier-free guidance: the reply's settings and the vocoder's take the same."""
    return check_number(name, value, 0.0, MAX_CFG_RATE, f"a finite number from 0 to {MAX_CFG_RATE:g}")


def check_played(value: Any) -> float:
    return check_number("played_ms", value, 0.0, want="a number of milliseconds, 0 or more")


def check_path(what: str, value: Any, error: type[Error] = Error) -> Path:
    """A path that a file system can be asked for."""
    if not isinstance(value, (str, os.PathLike)):
        raise error(f"{what} must be a path, found {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise error(f"{what} must be a path, found {path!r}")
    return Path(path)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 128:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
