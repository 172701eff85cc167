"""What all sessions of a server share: the bundle, its settings, the places to generate, the counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.conversation import Turn
from edge_sdk.errors import Error
from edge_sdk.generation import GenerationConfig
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT
from edge_sdk.server.items import Item, Items
from edge_sdk.server.limits import Limits, Slots
from edge_sdk.server.metrics import Metrics
from edge_sdk.server.settings import Settings, SettingsReader


@dataclass
class Service:
    """
    Args:
        chat_options: as for Chat: runtime, threads, context_tokens, ...
        generation: what a response is made with where the client says nothing else.
        instructions: system prompt of sessions that set none; None is upstream's.
        log_words: what users and the model say may stand in the log.
    """

    bundle: Bundle
    limits: Limits = field(default_factory=Limits)
    chat_options: dict[str, Any] = field(default_factory=dict)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    instructions: str | None = None
    log_words: bool = False
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        if manifest.model is None:
            raise Error(f"bundle '{self.bundle.path}' has only a vocoder: there is nothing to talk to")
        vocoder = manifest.vocoder if manifest.model.speech_head else None
        # The default voice first: clients that show a list begin there.
        voices = {vocoder.default_voice: None, **dict.fromkeys(sorted(vocoder.voices))} if vocoder else {}
        self.voices = tuple(voices)
        self.reader = SettingsReader(self.voices, bool(self.voices))
        self.slots = Slots(self.limits.slots, self.limits.queue, self.limits.queue_s)
        self.metrics.watch(self.slots)

    @property
    def model_name(self) -> str:
        return self.bundle.name

    def default_settings(self) -> Settings:
        speech = bool(self.voices)
        return Settings(
            instructions=self.instructions or (SYSTEM_SPEECH if speech else SYSTEM_TEXT),
            voice=self.voices[0] if self.voices else "",
            speech=speech,
            temperature=self.generation.temperature,
        )

    def open_chat(self, speech: bool) -> Chat:
        return Chat(self.bundle, speech=speech, generation=self.generation, **self.chat_options)

    def generation_for(self, settings: Settings) -> GenerationConfig:
        limit = settings.max_output_tokens
        return self.generation.replace(
            temperature=settings.temperature,
            max_new_tokens=min(limit or self.generation.max_new_tokens, self.generation.max_new_tokens),
        )


class Chats:
    """One session's Chats: one that speaks, and one that writes if the client asks for text. Opened when needed."""

    def __init__(self, service: Service, items: Items) -> None:
        self._service, self._items = service, items
        self._open: dict[bool, Chat] = {}
        self._configured: dict[bool, tuple[Any, ...]] = {}
        self._made: list[tuple[Turn, list[Item]]] = []

    def ready(self, settings: Settings, turns: list[Turn] | None = None) -> Chat:
        """The Chat for these settings, its history that of the items, or `turns`.

        Raises:
            edge_sdk.Error: what is set cannot be used.
        """
        chat = self.opened(settings.speech)
        key = (settings.instructions, settings.voice, settings.tools, settings.tool_choice)
        if self._configured.get(settings.speech) != key:
            chat.configure(
                system=self._system(settings), voice=settings.voice if settings.speech else None,
                tools=settings.model_tools(), trusted=False,
            )  # fmt: skip
            self._configured[settings.speech] = key
        self._made = self._items.turns() if turns is None else []
        chat.edit([turn for turn, _ in self._made] if turns is None else turns)
        return chat

    def opened(self, speech: bool) -> Chat:
        """Whatever it does at the moment."""
        if speech not in self._open:
            self._open[speech] = self._service.open_chat(speech)
        return self._open[speech]

    def forget(self, settings: Settings) -> None:
        """Mark the items that found no room in the context."""
        self._items.forget(self._open[settings.speech].turns, self._made)

    def close(self) -> None:
        """Let go of the caches now: what refers to a session may wait for the collector."""
        while self._open:
            self._open.popitem()[1].close()
        self._made = []

    def _system(self, settings: Settings) -> str | None:
        """The words that announce speech belong to it: without it the default is another."""
        return None if settings.instructions == SYSTEM_SPEECH and not settings.speech else settings.instructions
