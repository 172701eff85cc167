"""One JSON object of a client's, read field by field: each is of its type, and none is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edge_sdk.checks import without_halves
from edge_sdk.server.errors import ProtocolError

MAX_NAME = 128  # characters of an id or a name

_MISSING = object()


class Fields:
    """Reads an object; `end` refuses what was not asked for. Every method raises ProtocolError with the field's path.

    A field that is absent gives `default`; one that is null too, unless `nullable` says that null means something.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise wrong_type(where, "an object", value)
        self.where = where
        self._left = dict(value)

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        return name in self._left

    def any(self, name: str, default: Any = None) -> Any:
        value = self._left.pop(name, None)
        return default if value is None else value

    def is_null(self, name: str) -> bool:
        """Whether it is there and null; if so it counts as read."""
        if self._left.get(name, _MISSING) is None:
            del self._left[name]
            return True
        return False

    def text(self, name: str, default: str | None = None, *, required: bool = False, most: int = 1 << 20) -> str | None:
        value = self._take(name, default, required)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong_type(self.path(name), "a string", value)
        if len(value) > most:
            raise ProtocolError(
                f"Invalid '{self.path(name)}': it has {len(value)} characters, at most {most} are allowed.",
                "string_above_max_length", self.path(name),
            )  # fmt: skip
        return without_halves(value)

    def name(self, name: str, default: str | None = None, *, required: bool = False) -> str | None:
        """A short text: an id, a function's name."""
        return self.text(name, default, required=required, most=MAX_NAME)

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None, *, required: bool = False) -> Any:
        value = self.text(name, default, required=required)
        if value is not None and value not in choices:
            raise unsupported(self.path(name), value, choices)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise wrong_type(self.path(name), "a boolean", value)
        return value

    def number(self, name: str, default: float | None, least: float, most: float) -> float | None:
        value = self.any(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong_type(self.path(name), "a number", value)
        if not (least <= value <= most and math.isfinite(value)):
            raise out_of_range(self.path(name), value, least, most)
        return float(value)

    def whole(self, name: str, default: int | None, least: int, most: int, *, required: bool = False) -> int | None:
        value = self._take(name, default, required)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.path(name), "an integer", value)
        if not least <= value <= most:
            raise out_of_range(self.path(name), value, least, most)
        return value

    def list(self, name: str, default: tuple[Any, ...] | None = None, *, most: int = 128) -> list[Any] | None:
        value = self.any(name, default)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise wrong_type(self.path(name), "an array", value)
        if len(value) > most:
            raise ProtocolError(
                f"Invalid '{self.path(name)}': array too long. Expected at most {most} elements, found {len(value)}.",
                "array_above_max_length", self.path(name),
            )  # fmt: skip
        return list(value)

    def object(self, name: str) -> Fields | None:
        value = self.any(name)
        return None if value is None else Fields(value, self.path(name))

    def refuse(self, name: str, why: str, *allowed: Any) -> None:
        """A field whose meaning this server does not have: null and `allowed` pass."""
        value = self.any(name)
        if value is not None and value not in allowed:
            raise ProtocolError(
                f"Unsupported parameter: '{self.path(name)}': {why}.", "unsupported_parameter", self.path(name)
            )

    def end(self) -> None:
        if self._left:
            name = next(iter(self._left))
            shown = self.path(name[:MAX_NAME])
            raise ProtocolError(f"Unknown parameter: '{shown}'.", "unknown_parameter", shown)

    def _take(self, name: str, default: Any, required: bool) -> Any:
        value = self.any(name, default)
        if value is None and required:
            raise ProtocolError(
                f"Missing required parameter: '{self.path(name)}'.", "missing_required_parameter", self.path(name)
            )
        return value


def wrong_type(where: str, want: str, found: Any) -> ProtocolError:
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array",
             dict: "an object", type(None): "null"}  # fmt: skip
    what = kinds.get(type(found), "something else")
    return ProtocolError(
        f"Invalid type for '{where or 'event'}': expected {want}, but got {what} instead.",
        "invalid_type",
        where or None,
    )


def unsupported(where: str, found: str, choices: tuple[str, ...]) -> ProtocolError:
    shown = found if len(found) <= MAX_NAME else found[:MAX_NAME] + "..."
    supported = ", ".join(f"'{c}'" for c in choices)
    return ProtocolError(f"Invalid value: '{shown}'. Supported values are: {supported}.", "invalid_value", where)


def out_of_range(where: str, found: float, least: float, most: float) -> ProtocolError:
    shown = found if abs(found) < 1e18 else "a huge number"
    return ProtocolError(
        f"Invalid '{where}': expected a value from {least:g} to {most:g}, but got {shown} instead.",
        "invalid_value", where,
    )  # fmt: skip
