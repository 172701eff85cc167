"""Reads `cosyvoice3.yaml` as data. It is HyperPyYAML: its tags would make Python objects; here nothing is executed.

`!new:`, `!name:` and `!apply:` become `Tagged` values, `!ref` is looked up when a section that needs it is read, and
its arithmetic is worked out by walking the expression. Sections nobody asks for are never looked at.
"""

from __future__ import annotations

import ast
import contextlib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from edge_sdk.errors import CheckpointError

_T = TypeVar("_T")

MAX_BYTES = 1 << 20  # the released file has 8 kB
_MAX_REFS = 32  # a chain of references longer than this is a circle
_REFERENCE = re.compile(r"<([^<>]*)>")
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Tagged:
    """A value with a custom tag, kept as it stands: tag "new:cosyvoice.flow.flow.X", value the mapping below it."""

    tag: str
    value: Any

    @property
    def class_name(self) -> str:
        """The last part of the dotted name behind `new:`, "" for other tags."""
        kind, _, path = self.tag.partition(":")
        return path.rpartition(".")[2] if kind == "new" else ""


class _Loader(yaml.SafeLoader):
    """SafeLoader plus one rule: a local tag is data."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Tagged:
    value: Any
    if isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_scalar(node)  # type: ignore[arg-type]
    return Tagged(suffix, value)


_Loader.add_multi_constructor("!", _tagged)


class Document:
    """The file's top level. `section` opens a part of it; every problem found on the way is collected, not raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        try:
            data = path.read_bytes()
        except OSError as e:
            raise CheckpointError(f"cannot read '{path}': {e.strerror or e}") from e
        if len(data) > MAX_BYTES:
            raise CheckpointError(f"'{path}' has {len(data)} bytes, a vocoder configuration has a few thousand")
        try:
            # _Loader is a SafeLoader: it makes plain values and `Tagged`, and calls nothing that the file names.
            root = yaml.load(data, Loader=_Loader)
        except (yaml.YAMLError, RecursionError, ValueError) as e:
            raise CheckpointError(f"'{path}' is not a vocoder configuration: {e}") from e
        if not isinstance(root, dict):
            raise CheckpointError(f"'{path}' is not a vocoder configuration: its top level is {type(root).__name__}")
        self.root: dict[Any, Any] = root

    def top(self) -> Section:
        return Section(self, self.root, "")

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """Follow `!ref`. Raises CheckpointError for a name that is not there, a circle, or anything but arithmetic."""
        if not (isinstance(value, Tagged) and value.tag == "ref"):
            return value
        expression = str(value.value).strip()
        if depth > _MAX_REFS:
            raise CheckpointError(f"!ref {expression} goes in a circle")
        whole = _REFERENCE.fullmatch(expression)
        if whole:
            return self.resolve(self._lookup(whole[1], expression), depth + 1)

        def number(match: re.Match[str]) -> str:
            found = self.resolve(self._lookup(match[1], expression), depth + 1)
            if isinstance(found, bool) or not isinstance(found, (int, float)):
                raise CheckpointError(f"!ref {expression} computes with <{match[1]}>, which is not a number")
            return f"({found!r})"

        return _arithmetic(_REFERENCE.sub(number, expression), expression)

    def _lookup(self, name: str, expression: str) -> Any:
        if name not in self.root:
            raise CheckpointError(f"!ref {expression} refers to '{name}', which is not a top-level key")
        return self.root[name]

    def raise_problems(self) -> None:
        if self.problems:
            raise CheckpointError(f"'{self.path}': {'; '.join(self.problems)}")


def _arithmetic(text: str, shown: str) -> int | float:
    def walk(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.operand))
        raise CheckpointError(f"!ref {shown} is more than names, numbers and + - * /")

    try:
        result: int | float = walk(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ArithmeticError) as e:
        raise CheckpointError(f"!ref {shown} cannot be worked out: {e}") from e
    return result


class Section:
    """One mapping of the document, read key by key; `close` names the keys that nobody read."""

    def __init__(self, document: Document, value: Any, where: str) -> None:
        self._document = document
        self._where = where
        self._values: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
        self._read: set[Any] = set()

    def problem(self, text: str) -> None:
        self._document.problems.append(f"{self._where or 'top level'}: {text}")

    def _get(self, key: str) -> Any:
        self._read.add(key)
        if key not in self._values:
            self.problem(f"'{key}' is missing")
            return None
        try:
            return self._document.resolve(self._values[key])
        except CheckpointError as e:
            self.problem(f"'{key}': {e}")
            return None

    def _wrong(self, key: str, wanted: str, found: Any) -> None:
        if found is not None or key in self._values:
            self.problem(f"'{key}' must be {wanted}, found {found!r}")

    def integer(self, key: str, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; on a problem `minimum` is returned so that reading goes on."""
        found = self._get(key)
        if isinstance(found, float) and found.is_integer():
            found = int(found)  # arithmetic with / in a !ref
        if isinstance(found, int) and not isinstance(found, bool) and found >= minimum:
            return found
        self._wrong(key, f"a whole number >= {minimum}", found)
        return minimum

    def number(self, key: str) -> float:
        found = self._get(key)
        if isinstance(found, str):  # YAML 1.1 reads 1e-06 as text
            with contextlib.suppress(ValueError):
                found = float(found)
        if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < float("inf"):
            return float(found)
        self._wrong(key, "a number", found)
        return 0.0

    def integers(self, key: str) -> tuple[int, ...]:
        return self._integers(key, self._get(key))

    def _integers(self, key: str, found: Any) -> tuple[int, ...]:
        if isinstance(found, list) and found and all(type(item) is int and item >= 1 for item in found):
            return tuple(found)
        self._wrong(key, "a list of whole numbers >= 1", found)
        return ()

    def integer_lists(self, key: str) -> tuple[tuple[int, ...], ...]:
        found = self._get(key)
        if isinstance(found, list) and found and all(isinstance(item, list) for item in found):
            return tuple(self._integers(key, item) for item in found)
        self._wrong(key, "a list of lists of whole numbers", found)
        return ()

    def expect(self, key: str, *allowed: Any) -> None:
        """The key must have one of these values: others mean a computation that is not built here."""
        found = self._get(key)
        if found not in allowed and (found is not None or key in self._values):
            self.problem(f"'{key}' is {found!r}; supported: {', '.join(map(repr, allowed))}")

    def choice(self, key: str, meanings: Mapping[str, _T], default: str) -> _T:
        """What the key's word means; it may be missing."""
        found = self._get(key) if key in self._values else default
        if not isinstance(found, str) or found not in meanings:
            self.problem(f"'{key}' is {found!r}; supported: {', '.join(map(repr, meanings))}")
            found = default
        return meanings[found]

    def same(self, key: str, want: int | float, what: str) -> None:
        """The key must repeat a number that stands elsewhere in the file."""
        found = self._get(key)
        if found != want and (found is not None or key in self._values):
            self.problem(f"'{key}' is {found!r}, but {what} is {want!r}")

    def section(self, key: str, *classes: str) -> Section:
        """A nested mapping; with `classes`, its `!new:` tag must name one of them."""
        found = self._get(key)
        where = f"{self._where}.{key}" if self._where else key
        inner = found.value if isinstance(found, Tagged) else found
        if found is not None and classes and not (isinstance(found, Tagged) and found.class_name in classes):
            named = f"!{found.tag}" if isinstance(found, Tagged) else type(found).__name__
            self.problem(f"'{key}' is {named}; supported: {', '.join(classes)}")
        elif found is not None and not isinstance(inner, Mapping):
            self.problem(f"'{key}' must be a mapping")
        return Section(self._document, inner, where)

    def ignore(self, *keys: str) -> None:
        """Keys known to have no effect on inference."""
        self._read.update(keys)

    def close(self) -> None:
        """Name the keys that were not read: an option nobody knows could change the computation."""
        for key in self._values:
            if key not in self._read:
                self.problem(f"'{key}' is not known here, and may change the computation")
