"""Schemas from callables, and calls read from streamed text however it is cut."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import Error
from edge_sdk.events import ToolCall
from edge_sdk.tools import Tool, ToolCallParser, make_tools, run_tool, schema_of, unknown_tool

CALL = '<tool_call>\n{"name": "set_lamp", "arguments": {"on": true}}\n</tool_call>'
BROKEN = [
    "<tool_call>{not json}</tool_call>",
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": 3}</tool_call>',
    '<tool_call>{"name": "x", "arguments": [1]}</tool_call>',
    "<tool_call>[]</tool_call>",
    "<tool_call></tool_call>",
    '<tool_call>{"name": "never closed"}',
]


def parse(pieces: list[str]) -> list[Any]:
    parser = ToolCallParser()
    out = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    merged: list[Any] = []
    for part in out:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged


@given(st.lists(st.sampled_from(["Hello ", "a < b ", "<tool", "_call>", CALL, "</tool_call>", *BROKEN[:2]])), st.data())
def test_cuts_do_not_matter(parts: list[str], data: Any) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces) == parse([text])
    rebuilt = "".join(p if isinstance(p, str) else p.raw for p in parse([text]))
    assert rebuilt == text


def test_a_call_between_words() -> None:
    before, call, after = parse(["I will do it. " + CALL + " Done."])
    assert (before, after) == ("I will do it. ", " Done.")
    assert call == ToolCall("call_1", "set_lamp", {"on": True}, CALL)


def test_arguments_as_a_string_are_read_too() -> None:
    (call,) = parse(['<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>'])
    assert call.arguments == {"a": 1}


@pytest.mark.parametrize("text", BROKEN)
def test_a_malformed_call_is_text_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edge_sdk.tools"):
        assert parse([text]) == [text]
    assert caplog.records


def test_text_is_not_held_back_longer_than_needed() -> None:
    parser = ToolCallParser()
    assert parser.push("one <") == ["one "]
    assert parser.push("b>") == ["<b>"]


def set_lamp(
    on: bool,
    room: Annotated[str, "which room"] = "hall",
    level: float | None = None,
    colour: Literal["red", "blue"] = "red",
    tags: list[str] | None = None,
) -> dict[str, Any]:
    """Turn a lamp
    on or off.

    More about lamps.
    """
    return {"on": on, "room": room}


def test_schema_of_a_callable() -> None:
    function = schema_of(set_lamp)["function"]
    assert function["name"] == "set_lamp"
    assert function["description"] == "Turn a lamp on or off."
    assert function["parameters"]["required"] == ["on"]
    assert function["parameters"]["properties"] == {
        "on": {"type": "boolean"},
        "room": {"type": "string", "description": "which room"},
        "level": {"type": "number"},
        "colour": {"type": "string", "enum": ["red", "blue"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    json.dumps(function)


def test_results_and_failures_are_json() -> None:
    def boom() -> None:
        raise ValueError("no such lamp")

    (lamp, broken, odd) = make_tools([set_lamp, boom, schema_like("battery")])
    assert json.loads(run_tool(lamp, {"on": True})) == {"on": True, "room": "hall"}
    assert "no such lamp" in json.loads(run_tool(broken, {}))["error"]
    assert "error" in json.loads(run_tool(lamp, {"wrong": 1}))
    with pytest.raises(Error, match="without a function"):
        run_tool(odd, {})


def test_a_result_that_is_not_json_is_told_to_the_model() -> None:
    def thing() -> Any:
        return object()

    assert "error" in json.loads(run_tool(make_tools([thing])[0], {}))


def test_a_failure_that_cannot_be_told_is_named() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even that")

    def mute() -> None:
        raise MuteError

    assert json.loads(run_tool(make_tools([mute])[0], {})) == {"error": "MuteError"}


def test_a_tool_cannot_change_the_call() -> None:
    def empty(names: list[str]) -> int:
        names.clear()
        return len(names)

    (call,) = parse(['<tool_call>{"name": "empty", "arguments": {"names": ["a"]}}</tool_call>'])
    assert run_tool(make_tools([empty])[0], call.arguments) == "0"
    assert call.arguments == {"names": ["a"]}


def test_a_program_that_wants_to_end_may() -> None:
    def leave() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        run_tool(make_tools([leave])[0], {})


def test_the_name_of_an_unknown_tool_cannot_break_the_json() -> None:
    name = "a\"b\\c'd"
    assert json.loads(unknown_tool(name, ["x", "y"])) == {"error": f"there is no function {name!r}; there is x, y"}


def schema_like(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (set_lamp, "sequence"),
        ("set_lamp", "sequence"),
        ({"name": "x"}, "sequence"),
        ([3], "callable or a JSON schema"),
        ([lambda: 1], "no name"),
        ([schema_like("")], "function.name"),
        ([schema_like(3)], "function.name"),
        ([{"name": "x", "parameters": {1, 2}}], "not JSON"),
        ([set_lamp, set_lamp], "two tools"),
        ([print], "cannot be (read|given)"),
    ],
)
def test_unusable_tools_are_refused(tools: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        make_tools(tools)


def test_a_bare_schema_is_wrapped() -> None:
    (tool,) = make_tools([{"name": "x", "parameters": {"type": "object", "properties": {}}}])
    assert tool == Tool(
        {"type": "function", "function": {"name": "x", "parameters": {"type": "object", "properties": {}}}}
    )
