"""Function calling: Python callables and JSON schemas as tools, and calls read from text as it streams.

What a tool returns and what the model writes may hold half characters (a lone "\\ud83d" in JSON): they become U+FFFD
here, so that nothing else is lost by them. A schema that holds one is refused.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.checks import check_text, without_halves
from edge_sdk.errors import Error
from edge_sdk.events import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}

log = logging.getLogger("edge_sdk.tools")


@dataclass(frozen=True)
class Tool:
    """A function the model may call: `schema` in OpenAI's form; `function` runs it, None leaves that to the caller."""

    schema: dict[str, Any]
    function: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])


def make_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Plain callables, `{"type": "function", "function": {...}}` objects, or the inner objects alone -> Tools.

    Raises:
        Error: neither, without a name, or two of one name.
    """
    if isinstance(tools, (str, bytes, Mapping)) or callable(tools):
        raise Error("tools must be a sequence of callables or JSON schemas, found a single one; put it in a list")
    if not isinstance(tools, Iterable):
        raise Error(f"tools must be a sequence of callables or JSON schemas, found {tools!r}")
    made = tuple(_make_tool(tool) for tool in tools)
    names = [tool.name for tool in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Error(f"two tools are called {', '.join(map(repr, twice))}; names must differ")
    return made


def _make_tool(tool: Any) -> Tool:
    if isinstance(tool, Tool):
        made = tool
    elif isinstance(tool, Mapping):
        made = Tool(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    elif callable(tool):
        made = Tool(schema_of(tool), tool)
    else:
        raise Error(f"a tool must be a callable or a JSON schema, found {type(tool).__name__}")
    _check_schema(made.schema)
    if _is_async(made.function):
        raise Error(f"tool '{made.name}' is async; give a plain function (asyncio.run inside it can await)")
    return made


def _check_schema(schema: Any) -> None:
    inner = schema.get("function") if isinstance(schema, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise Error(f"a tool's schema must have function.name, found {schema!r}")
    try:
        text = json.dumps(schema, ensure_ascii=False)
    except Exception as e:  # mappings and lists may be anyone's
        raise Error(f"the schema of tool {inner['name']!r} is not JSON: {e}") from e
    check_text(f"the schema of tool {inner['name']!r}", text)


def _is_async(function: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f)
        for f in (function, getattr(function, "__call__", None))  # noqa: B004 - an object's __call__ may be async
    )


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a callable: its name, the first paragraph of its docstring, its annotated parameters."""
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise Error(f"{function!r} has no name the model could call; define it with def, or give a JSON schema")
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as e:  # annotations are source code, and run
        raise Error(f"the parameters of tool '{name}' cannot be read ({e}); give a JSON schema instead") from e
    properties, required = {}, []
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise Error(f"tool '{name}': parameter '{p.name}' cannot be given by name; use plain named parameters")
        properties[p.name] = _type_schema(hints.get(p.name, str), f"tool '{name}', parameter '{p.name}'")
        if p.default is p.empty:
            required.append(p.name)
    description = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").strip()
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        kinds = {type(a) for a in args}
        if not kinds <= {str, int, bool, type(None)}:
            raise Error(f"{where}: {hint!r} has values that JSON does not know; use strings or whole numbers")
        return {"type": _JSON_TYPES.get(kinds.pop(), "string") if len(kinds) == 1 else "string", "enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _type_schema(inner[0], where)
    if origin is typing.Annotated:
        note = next((a for a in args[1:] if isinstance(a, str)), None)
        return {**_type_schema(args[0], where), **({"description": note} if note else {})}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": _type_schema(args[0], where) if args else {}}
    if origin in (dict, Mapping):
        return {"type": "object"}
    if hint is Any:
        return {}
    if isinstance(hint, type) and hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    raise Error(f"{where}: the type {hint!r} has no JSON schema; use str, int, float, bool, list, dict or Literal")


def run_tool(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Call a tool; its result, or what went wrong, as JSON text for the model.

    SystemExit and KeyboardInterrupt are the program's own, and pass.
    """
    if tool.function is None:
        raise Error(f"tool '{tool.name}' is a schema without a function")
    try:
        result = tool.function(**copy.deepcopy(dict(arguments)))  # the call stands in the history, whatever it does
        return without_halves(json.dumps(result, ensure_ascii=False))
    except Exception as e:  # a tool's failure is told to the model, whatever it is
        what = _described(e)
        log.warning("tool '%s' failed: %s", tool.name, what)
        return tool_error(what)


def unknown_tool(name: str, known: Iterable[str]) -> str:
    """What the model is told when it calls a function that does not exist, as JSON text."""
    return tool_error(f"there is no function {name!r}; there is {', '.join(known) or 'none'}")


def tool_error(what: str) -> str:
    """What the model is told instead of a result, as JSON text."""
    return without_halves(json.dumps({"error": what}, ensure_ascii=False))


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its __str__ fails as well
        return type(error).__name__


class ToolCallParser:
    """Splits streamed text into what is said and `<tool_call>` blocks.

    Text that may still become a tag is held back. A block whose JSON is not {"name": str, "arguments": object}, or that
    never closes, is text after all, with a warning in the log.
    """

    def __init__(self, first_id: int = 0) -> None:
        self._buffer = ""
        self._inside = False
        self._count = first_id

    def push(self, text: str) -> list[str | ToolCall]:
        self._buffer += text
        out: list[str | ToolCall] = []
        while True:
            tag = CLOSE if self._inside else OPEN
            at = self._buffer.find(tag)
            if at < 0:
                break
            piece, self._buffer = self._buffer[:at], self._buffer[at + len(tag) :]
            if self._inside:
                out.append(self._parse(piece))
            elif piece:
                out.append(piece)
            self._inside = not self._inside
        if not self._inside:
            ready = len(self._buffer) - _partial(self._buffer, OPEN)
            if ready:
                out.append(self._buffer[:ready])
                self._buffer = self._buffer[ready:]
        return out

    def finish(self) -> list[str | ToolCall]:
        """The rest: what was held back is text."""
        rest = (OPEN if self._inside else "") + self._buffer
        if self._inside:
            log.warning("a tool call never closed; returned as text: %r", rest[:200])
        self._buffer, self._inside = "", False
        return [rest] if rest else []

    def _parse(self, inner: str) -> str | ToolCall:
        raw = OPEN + inner + CLOSE
        try:
            value = _read_json(inner)
            name, arguments = value["name"], value.get("arguments", {})
            if isinstance(arguments, str):  # some models write the object as a string
                arguments = _read_json(arguments)
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError("name must be a string, arguments an object")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            log.warning("a malformed tool call is returned as text (%s): %r", e, raw[:200])
            return raw
        self._count += 1
        return ToolCall(f"call_{self._count}", name, arguments, raw)


def parse_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as somebody else wrote them; ValueError if they are not a JSON object."""
    try:
        value = _read_json(text)
    except RecursionError as e:
        raise ValueError("it is nested too deep") from e
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def _read_json(text: str) -> Any:
    """JSON has escapes for half characters; what is read here has none."""
    value = json.loads(text)
    whole = without_halves(plain := json.dumps(value, ensure_ascii=False))
    return value if whole == plain else json.loads(whole)


def _partial(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
