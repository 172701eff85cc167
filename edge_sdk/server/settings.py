"""What a client sets: the protocol's session object, in the shape of either generation, checked field by field."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from edge_sdk.server.errors import ProtocolError
from edge_sdk.server.fields import Fields, unsupported, wrong_type
from edge_sdk.server.sound import FORMATS, PCM_RATE_HZ

MAX_OUTPUT_TOKENS = 4096
MAX_INSTRUCTIONS = 1 << 16
MAX_TOOLS_TEXT = 1 << 17
# Names of fields that only the beta generation has: a client that uses one speaks it.
BETA_ONLY = (
    "modalities", "input_audio_format", "output_audio_format", "input_audio_transcription",
    "input_audio_noise_reduction", "turn_detection", "voice", "max_response_output_tokens", "speed",
)  # fmt: skip
_GA_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class TurnDetection:
    """server_vad: the server finds where the user begins and stops to speak."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "server_vad", "threshold": self.threshold, "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms, "create_response": self.create_response,
            "interrupt_response": self.interrupt_response, "idle_timeout_ms": None,
        }  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Of a session, or of one response."""

    instructions: str
    voice: str  # "" where the bundle makes no sound
    speech: bool  # output_modalities ["audio"], else ["text"]
    tools: tuple[dict[str, Any], ...] = ()  # flat, as the protocol has them
    tool_choice: str = "auto"  # or "none"
    turn_detection: TurnDetection | None = TurnDetection()
    input_format: str = "pcm16"
    output_format: str = "pcm16"
    temperature: float = 0.8
    max_output_tokens: int | None = None  # None: "inf"
    transcription: dict[str, Any] | None = None

    def model_tools(self) -> list[dict[str, Any]]:
        """As a Chat takes them."""
        if self.tool_choice == "none":
            return []
        return [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in self.tools]


class SettingsReader:
    """Applies a client's objects to Settings: all of an object or, with a ProtocolError, nothing."""

    def __init__(self, voices: tuple[str, ...], can_speak: bool) -> None:
        self._voices, self._can_speak = voices, can_speak

    def session(self, before: Settings, fields: Fields) -> Settings:
        """A `session.update`. Only what is there changes; null is a value for turn_detection and transcription."""
        fields.choice("type", ("realtime",))
        fields.any("model")  # there is one model, and the session's object names it
        for name in ("id", "object", "expires_at"):  # clients send the session back that they got
            fields.any(name)
        after = self._common(before, fields)
        if audio := fields.object("audio"):
            if sound := audio.object("input"):
                after = self._input(after, sound, "format", "transcription", "noise_reduction")
                sound.end()
            if sound := audio.object("output"):
                after = self._output(after, sound, "format")
                sound.end()
            audio.end()
        after = self._input(
            after, fields, "input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"
        )
        after = self._output(after, fields, "output_audio_format")
        _refuse_session_parts(fields)
        fields.end()
        return after

    def response(self, before: Settings, fields: Fields) -> Settings:
        """The settings in a `response.create`; what is no setting was read before."""
        after = self._common(before, fields)
        if audio := fields.object("audio"):
            if sound := audio.object("output"):
                after = self._output(after, sound, "format")
                sound.end()
            audio.end()
        after = self._output(after, fields, "output_audio_format")
        for name in ("prompt", "reasoning"):
            fields.refuse(name, "there is no such thing here")
        fields.flag("parallel_tool_calls", True)
        fields.end()
        return after

    # -- parts

    def _common(self, before: Settings, fields: Fields) -> Settings:
        instructions = fields.text("instructions", before.instructions, most=MAX_INSTRUCTIONS) or ""
        temperature = fields.number("temperature", before.temperature, 1e-3, 2.0) or before.temperature
        speech = before.speech
        for name in ("output_modalities", "modalities"):
            given = fields.list(name)
            if given is not None:
                speech = self._modality(given, fields.path(name))
        limit = before.max_output_tokens
        for name in ("max_output_tokens", "max_response_output_tokens"):
            limit = _output_tokens(fields, name, limit)
        tools = before.tools
        if (given := fields.list("tools")) is not None:
            tools = _tools(given, fields.path("tools"))
        return replace(
            before, instructions=instructions, temperature=temperature, speech=speech, max_output_tokens=limit,
            tools=tools, tool_choice=_tool_choice(fields, before.tool_choice),
        )  # fmt: skip

    def _modality(self, given: list[Any], where: str) -> bool:
        if not given or not all(m in ("audio", "text") for m in given if isinstance(m, str)):
            raise ProtocolError(f"Invalid '{where}': use ['audio'] or ['text'].", "invalid_value", where)
        speech = "audio" in given  # with text, as the beta generation has it: sound has its text with it in any case
        if speech and not self._can_speak:
            raise ProtocolError(f"Invalid '{where}': this model makes text only.", "invalid_value", where)
        return speech

    def _input(self, before: Settings, fields: Fields, form: str, transcription: str, noise: str) -> Settings:
        after = replace(before, input_format=_format(fields, form, before.input_format))
        fields.refuse(noise, "there is no noise reduction; use null")
        if fields.is_null(transcription):
            after = replace(after, transcription=None)
        elif wanted := fields.object(transcription):
            names = ("model", "language", "prompt", "delay")
            after = replace(after, transcription={n: t for n in names if (t := wanted.text(n)) is not None})
            wanted.any("keywords")
            wanted.end()
        if fields.is_null("turn_detection"):
            return replace(after, turn_detection=None)
        if detection := fields.object("turn_detection"):
            after = replace(after, turn_detection=_turn_detection(detection, before.turn_detection))
        return after

    def _output(self, before: Settings, fields: Fields, form: str) -> Settings:
        after = replace(before, output_format=_format(fields, form, before.output_format))
        fields.refuse("speed", "the speed of speech cannot be changed; use 1.0", 1, 1.0)
        voice = fields.any("voice")
        if isinstance(voice, dict):
            voice = voice.get("id")
        if voice is None:
            return after
        if not isinstance(voice, str):
            raise wrong_type(fields.path("voice"), "a string", voice)
        if voice not in self._voices:
            raise unsupported(fields.path("voice"), voice, self._voices)
        return replace(after, voice=voice)


def _format(fields: Fields, name: str, before: str) -> str:
    value = fields.any(name)
    if value is None:
        return before
    where = fields.path(name)
    if isinstance(value, str):  # the beta generation's
        if value not in FORMATS:
            raise unsupported(where, value, FORMATS)
        return value
    inner = Fields(value, where)
    kind: str = inner.choice("type", tuple(_GA_FORMATS), required=True)
    if kind == "audio/pcm":
        inner.whole("rate", PCM_RATE_HZ, PCM_RATE_HZ, PCM_RATE_HZ)
    inner.end()
    return _GA_FORMATS[kind]


def _turn_detection(fields: Fields, before: TurnDetection | None) -> TurnDetection:
    kind = fields.choice("type", ("server_vad", "semantic_vad"), "server_vad")
    if kind == "semantic_vad":
        raise ProtocolError(
            "Unsupported turn detection 'semantic_vad': there is no model for it here. Use 'server_vad' or null.",
            "unsupported_parameter", fields.path("type"),
        )  # fmt: skip
    was = before or TurnDetection()
    # The voice detector keeps four seconds of sound, which bounds both times.
    found = TurnDetection(
        threshold=fields.number("threshold", was.threshold, 0.01, 0.99) or was.threshold,
        prefix_padding_ms=_known(fields.whole("prefix_padding_ms", was.prefix_padding_ms, 0, 1500)),
        silence_duration_ms=_known(fields.whole("silence_duration_ms", was.silence_duration_ms, 100, 3000)),
        create_response=fields.flag("create_response", was.create_response),
        interrupt_response=fields.flag("interrupt_response", was.interrupt_response),
    )
    fields.refuse("idle_timeout_ms", "nothing is said into silence; use null")
    fields.end()
    return found


def _known(value: int | None) -> int:
    return 0 if value is None else value


def _output_tokens(fields: Fields, name: str, before: int | None) -> int | None:
    value = fields.any(name)
    if value == "inf":
        return None
    if value is None:
        return before
    return Fields({name: value}, fields.where).whole(name, before, 1, MAX_OUTPUT_TOKENS)


def _tools(given: list[Any], where: str) -> tuple[dict[str, Any], ...]:
    tools = tuple(_tool(tool, f"{where}[{n}]") for n, tool in enumerate(given))
    names = [tool["name"] for tool in tools]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ProtocolError(f"Invalid '{where}': two tools are called '{twice}'.", "invalid_value", where)
    if len(json.dumps(tools, ensure_ascii=False)) > MAX_TOOLS_TEXT:
        raise ProtocolError(f"Invalid '{where}': they are too long for the model.", "string_above_max_length", where)
    return tools


def _tool(given: Any, where: str) -> dict[str, Any]:
    fields = Fields(given, where)
    kind = fields.text("type", "function")
    if kind != "function":
        raise ProtocolError(
            f"Unsupported tool type '{kind}' in '{where}': only 'function' is known here.",
            "unsupported_parameter", f"{where}.type",
        )  # fmt: skip
    name = fields.name("name", required=True) or ""
    if not _TOOL_NAME.fullmatch(name):
        raise ProtocolError(
            f"Invalid '{where}.name': use 1 to 64 letters, digits, _ - and dots.", "invalid_value", f"{where}.name"
        )
    tool: dict[str, Any] = {"type": "function", "name": name}
    if (description := fields.text("description")) is not None:
        tool["description"] = description
    parameters = fields.any("parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise wrong_type(f"{where}.parameters", "an object", parameters)
        tool["parameters"] = parameters
    fields.any("strict")
    fields.end()
    return tool


def _tool_choice(fields: Fields, before: str) -> str:
    value = fields.any("tool_choice", before)
    if value not in ("auto", "none"):
        raise ProtocolError(
            "Unsupported 'tool_choice': the model cannot be made to call a function. Use 'auto' or 'none'.",
            "unsupported_parameter", fields.path("tool_choice"),
        )  # fmt: skip
    return str(value)


def _refuse_session_parts(fields: Fields) -> None:
    fields.refuse("include", "nothing more can be included", [])
    fields.refuse("truncation", "the oldest exchanges go when the context is full; use 'auto'", "auto")
    fields.refuse("tracing", "nothing is traced; use null")
    for name in ("prompt", "reasoning"):
        fields.refuse(name, "there is no such thing here")
    fields.flag("parallel_tool_calls", True)
    fields.any("client_secret")
