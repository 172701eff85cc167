"""The protocol's two generations. Everything inside is in the generally available one ("GA"); here it is rewritten for
clients of the beta, who say `OpenAI-Beta: realtime=v1` or use its session's fields.
"""

from __future__ import annotations

from typing import Any

from edge_sdk.server.settings import Settings

_BETA_TYPES = {
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": "",  # has no like
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
}
_BETA_CONTENT = {"output_text": "text", "output_audio": "audio"}
_GA_FORMATS = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


def session_json(settings: Settings, session_id: str, model: str, expires_at: int, *, beta: bool) -> dict[str, Any]:
    detection = settings.turn_detection.to_json() if settings.turn_detection else None
    common = {
        "id": session_id, "object": "realtime.session", "model": model, "expires_at": expires_at,
        "instructions": settings.instructions, "tools": list(settings.tools), "tool_choice": settings.tool_choice,
        "temperature": settings.temperature,
    }  # fmt: skip
    limit = "inf" if settings.max_output_tokens is None else settings.max_output_tokens
    if beta:
        return {
            **common, "modalities": _modalities(settings, beta=True), "voice": settings.voice or None,
            "input_audio_format": settings.input_format, "output_audio_format": settings.output_format,
            "input_audio_transcription": settings.transcription, "turn_detection": detection,
            "max_response_output_tokens": limit,
        }  # fmt: skip
    return {
        **common, "type": "realtime", "output_modalities": _modalities(settings, beta=False),
        "audio": {
            "input": {
                "format": _GA_FORMATS[settings.input_format], "transcription": settings.transcription,
                "noise_reduction": None, "turn_detection": detection,
            },
            "output": _output_json(settings, speed=True),
        },
        "max_output_tokens": limit, "truncation": "auto", "tracing": None, "include": None, "prompt": None,
    }  # fmt: skip


def response_settings_json(settings: Settings, *, beta: bool) -> dict[str, Any]:
    """The part of a response's object that repeats what was set."""
    limit = "inf" if settings.max_output_tokens is None else settings.max_output_tokens
    if beta:
        return {
            "modalities": _modalities(settings, beta=True), "voice": settings.voice or None, "max_output_tokens": limit,
            "output_audio_format": settings.output_format, "temperature": settings.temperature,
        }  # fmt: skip
    return {
        "output_modalities": _modalities(settings, beta=False), "max_output_tokens": limit,
        "audio": {"output": _output_json(settings, speed=False)},
    }  # fmt: skip


def to_beta(event: dict[str, Any]) -> dict[str, Any] | None:
    """A GA event as the beta spells it; None: the beta has none."""
    kind = _BETA_TYPES.get(event["type"], event["type"])
    if not kind:
        return None
    out = {**event, "type": kind}
    if "item" in out:
        out["item"] = _beta_item(out["item"])
    if isinstance(out.get("response"), dict):
        response = out["response"]
        out["response"] = {**response, "output": [_beta_item(item) for item in response.get("output", [])]}
    return out


def _beta_item(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    if content is None:
        return item
    return {**item, "content": [{**part, "type": _BETA_CONTENT.get(part["type"], part["type"])} for part in content]}


def _modalities(settings: Settings, *, beta: bool) -> list[str]:
    if not settings.speech:
        return ["text"]
    return ["text", "audio"] if beta else ["audio"]


def _output_json(settings: Settings, *, speed: bool) -> dict[str, Any]:
    made = {"format": _GA_FORMATS[settings.output_format], "voice": settings.voice or None}
    return {**made, "speed": 1.0} if speed else made
