"""The functions of the domain as JSON schemas, their calls as Qwen's template writes them, and what they return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from edge_sdk.events import ToolCall
from edge_sdk.tools import CLOSE, OPEN, tool_error

_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_NUMBER = {"type": "number"}


def _schema(name: str, description: str, required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Any:
    parameters = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_LENGTH = {"hours": _INTEGER, "minutes": _INTEGER, "seconds": _INTEGER}
_ALL = (
    _schema("get_time", "The time, here or in a city", {}, {"city": _STRING}),
    _schema("get_date", "Today's date", {}),
    _schema("set_timer", "Start a timer", {}, _LENGTH),
    _schema("cancel_timer", "Stop the timer", {}),
    _schema("get_timer", "Time left on the timer", {}),
    _schema("set_alarm", "Set an alarm, time as HH:MM", {"time": _STRING}),
    _schema("cancel_alarm", "Remove an alarm, time as HH:MM", {"time": _STRING}),
    _schema("set_light", "Turn a light on or off", {"room": _STRING, "on": _BOOLEAN}),
    _schema("dim_light", "Brightness of a light in percent", {"room": _STRING, "brightness": _INTEGER}),
    _schema("set_device", "Turn a device on or off", {"device": _STRING, "on": _BOOLEAN}),
    _schema("set_temperature", "Set the heating, in degrees Celsius", {"degrees": _INTEGER}),
    _schema("get_weather", "Weather of a city on a day", {"city": _STRING, "day": _STRING}),
    _schema(
        "calculate",
        "a plus, minus, times or over b, or a percent of b",
        {"a": _NUMBER, "operation": _STRING, "b": _NUMBER},
    ),
    _schema("convert", "An amount in another unit", {"amount": _NUMBER, "unit": _STRING, "to": _STRING}),
)
TOOLS: Mapping[str, dict[str, Any]] = {tool["function"]["name"]: tool for tool in _ALL}


def call(name: str, number: int = 1, /, **arguments: Any) -> ToolCall:
    """A call with the text that a Qwen3 template renders for it, tags included. `number` counts a turn's calls."""
    inner = f'{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    return ToolCall(f"call_{number}", name, arguments, f"{OPEN}\n{inner}\n{CLOSE}")


def number(value: Fraction) -> int | float:
    """As JSON writes it shortest: 3, not 3.0."""
    return int(value) if value == int(value) else float(value)


def result(**values: Any) -> str:
    """What a tool returns, as the SDK hands it to the model."""
    return json.dumps(values, ensure_ascii=False)


def failed(what: str) -> str:
    return tool_error(what)
