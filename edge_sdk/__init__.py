"""edge_sdk: speech in, speech out, on the device.

    import edge_sdk
    chat = edge_sdk.Chat("fun-audio-chat-8b.bundle")
    reply = chat.send(audio="question.wav")
    reply.save("answer.wav")

Importing this needs NumPy alone; each part imports what it needs when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import (
    AudioError,
    BundleError,
    BusyError,
    CheckpointError,
    ContextFullError,
    DeviceError,
    Error,
    ExportError,
    RuntimeUnavailableError,
)

if TYPE_CHECKING:
    from edge_sdk.assistant import Assistant
    from edge_sdk.audio_devices import list_devices
    from edge_sdk.barge_in import BargeInConfig
    from edge_sdk.bundle import Bundle
    from edge_sdk.chat import Chat
    from edge_sdk.diagnosis import doctor
    from edge_sdk.endpoint_config import EndpointConfig
    from edge_sdk.events import AudioChunk, Done, Reply, TextDelta, Timings, ToolCall
    from edge_sdk.generation import GenerationConfig
    from edge_sdk.vocoder import Vocoder

__version__ = "0.1.0"

_LAZY = {
    "Assistant": "edge_sdk.assistant",
    "AudioChunk": "edge_sdk.events",
    "BargeInConfig": "edge_sdk.barge_in",
    "Bundle": "edge_sdk.bundle",
    "Chat": "edge_sdk.chat",
    "Done": "edge_sdk.events",
    "EndpointConfig": "edge_sdk.endpoint_config",
    "GenerationConfig": "edge_sdk.generation",
    "Reply": "edge_sdk.events",
    "TextDelta": "edge_sdk.events",
    "Timings": "edge_sdk.events",
    "ToolCall": "edge_sdk.events",
    "Vocoder": "edge_sdk.vocoder",
    "doctor": "edge_sdk.diagnosis",
    "list_devices": "edge_sdk.audio_devices",
}

__all__ = [
    "Assistant",
    "AudioChunk",
    "AudioError",
    "BargeInConfig",
    "Bundle",
    "BundleError",
    "BusyError",
    "Chat",
    "CheckpointError",
    "ContextFullError",
    "DeviceError",
    "Done",
    "EndpointConfig",
    "Error",
    "ExportError",
    "GenerationConfig",
    "Reply",
    "RuntimeUnavailableError",
    "TextDelta",
    "Timings",
    "ToolCall",
    "Vocoder",
    "__version__",
    "doctor",
    "list_devices",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edge_sdk' has no attribute '{name}'")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
