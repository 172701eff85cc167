"""A conversation -> prompt ids, by the bundle's chat template, as upstream renders it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.errors import BundleError
from edge_sdk.runtime import Array
from edge_sdk.tokenizer import Tokenizer

SYSTEM_SPEECH = "You are asked to generate both text and speech tokens at the same time."
SYSTEM_TEXT = "You are asked to generate text tokens."
TOOL_RESPONSE_OPEN, TOOL_RESPONSE_CLOSE = "<tool_response>\n", "\n</tool_response>"

_TOOLS_OPEN = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_CLOSE = (
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

_row_keys = itertools.count(1)


def new_row_keys(count: int) -> Array:
    """Keys no other audio row of this process has, int64 [count]. Two positions with one key hold the same row."""
    return np.fromiter(itertools.islice(_row_keys, count), np.int64, count)


@dataclass(frozen=True)
class Clip:
    """Audio of one turn as the backbone sees it.

    `rows` float32 [N, hidden], one a placeholder; `keys` int64 [N] identify them; `seconds` is the clip's length.
    """

    rows: Array
    keys: Array
    seconds: float

    @classmethod
    def of(cls, rows: Array, seconds: float) -> Clip:
        return cls(rows, new_row_keys(len(rows)), seconds)


@dataclass(frozen=True)
class Message:
    """One turn as the template gets it.

    `pieces` is the content: strings, each with whether it is trusted (the developer's or the template's own words, in
    which special tokens count), and clips.
    """

    role: str
    pieces: tuple[tuple[str, bool] | Clip, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """Ids of a rendered conversation and the audio rows that stand at its placeholders."""

    ids: Array  # int64 [T]
    audio: Array  # float32 [N, hidden]
    audio_positions: Array  # int64 [N], ascending
    row_keys: Array  # int64 [T]: the key of the audio row at a position, 0 where there is none
    clip_ends: tuple[int, ...] = ()  # for each clip the position after its last row

    def __len__(self) -> int:
        return len(self.ids)

    def shared_prefix(self, other: Prompt) -> int:
        """Leading positions at which both have the same id and the same audio row."""
        n = min(len(self), len(other))
        differs = (self.ids[:n] != other.ids[:n]) | (self.row_keys[:n] != other.row_keys[:n])
        return int(differs.argmax()) if differs.any() else n

    def head(self, length: int) -> Prompt:
        """The first `length` positions."""
        rows = int(np.searchsorted(self.audio_positions, length))
        return Prompt(self.ids[:length], self.audio[:rows], self.audio_positions[:rows], self.row_keys[:length])


class Template:
    """The checkpoint's chat template (Jinja), rendered in a sandbox."""

    def __init__(self, source: str, tokenizer: Tokenizer, model: ModelConfig) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The settings that upstream's library renders with.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except TemplateError as e:
            raise BundleError(f"the bundle's chat template is not valid Jinja: {e}") from e
        self._source = source
        self._tokenizer = tokenizer
        self._model = model
        by_id = {i: name for name, i in tokenizer.added_ids.items()}
        ids = model.text_ids
        try:
            self._audio_open, self._audio, self._audio_close = (
                by_id[i] for i in (ids.audio_bos, ids.audio, ids.audio_eos)
            )
        except KeyError as e:
            raise BundleError(f"the tokenizer has no added token for the audio id {e}") from e

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> Prompt:
        """Ids of the whole conversation, placeholders expanded to one id a row.

        Args:
            generate: end with the opening of an assistant turn.
        """
        texts = [piece[0] for m in messages for piece in m.pieces if not isinstance(piece, Clip)]
        guard = self._tokenizer.guard_for([self._source, *texts])
        rendered = self._apply([{"role": m.role, "content": self._content(m, guard)} for m in messages], generate)
        ids = self._tokenizer.encode(rendered, guard)
        clips = tuple(p for m in messages for p in m.pieces if isinstance(p, Clip))
        return self._expand(ids, clips)

    def _content(self, message: Message, guard: str) -> str:
        parts = []
        for piece in message.pieces:
            if isinstance(piece, Clip):
                parts.append(self._audio_open + self._audio + self._audio_close)
            else:
                text, trusted = piece
                parts.append(text if trusted else self._tokenizer.disarm(text, guard))
        return "".join(parts)

    def _apply(self, messages: list[dict[str, str]], generate: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=messages, add_generation_prompt=generate)
        except (TemplateError, TypeError, ValueError, KeyError) as e:
            raise BundleError(f"the bundle's chat template failed: {e}") from e

    def _expand(self, ids: Sequence[int], clips: tuple[Clip, ...]) -> Prompt:
        placeholder = self._model.text_ids.audio
        found = [n for n, i in enumerate(ids) if i == placeholder]
        if len(found) != len(clips):
            raise BundleError(
                f"the rendered prompt has {len(found)} audio placeholders for {len(clips)} audio clips: "
                f"the system prompt names {self._audio}, or the chat template drops or repeats content"
            )
        out: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        remaining = iter(clips)
        for i in ids:
            count = len(next(remaining).rows) if i == placeholder else 1
            if i == placeholder:
                positions += range(len(out), len(out) + count)
            out += [i] * count
            if i == placeholder:
                ends.append(len(out))
        rows = [c.rows for c in clips] or [np.zeros((0, self._model.backbone.hidden_size), np.float32)]
        row_keys = np.zeros(len(out), np.int64)
        row_keys[positions] = np.concatenate([c.keys for c in clips]) if clips else 0
        return Prompt(
            np.array(out, np.int64), np.concatenate(rows), np.array(positions, np.int64), row_keys, tuple(ends)
        )


def system_message(system: str, tools: Sequence[dict[str, Any]], *, trusted: bool = True) -> Message:
    """The conversation's first message: the system prompt, and the functions that may be called (Qwen's wording, as
    upstream's example).

    Args:
        trusted: the words are the developer's, and special tokens in them count. Else they are plain text.
    """
    pieces = ((system, trusted),) if system else ()
    if not tools:
        return Message("system", pieces)
    signatures = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return Message("system", (*pieces, (_TOOLS_OPEN, True), (signatures, trusted), (_TOOLS_CLOSE, True)))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
