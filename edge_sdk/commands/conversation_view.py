"""What `edge-sdk run` shows: a live view in a terminal (rich), plain lines elsewhere, or JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Protocol

import numpy as np

from edge_sdk.assistant_events import (
    Answered,
    AssistantEvent,
    Calling,
    Failed,
    Hearing,
    Interrupted,
    Level,
    Listening,
    Pausing,
    Said,
    Sleeping,
    Speaking,
    Thinking,
)
from edge_sdk.turn_timings import TurnTimings

STATES: dict[type[Any], tuple[str, str]] = {
    Sleeping: ("asleep", "dim"), Listening: ("listening", "green"), Hearing: ("hearing you", "bold green"),
    Pausing: ("hearing you", "green"), Thinking: ("thinking", "yellow"), Speaking: ("speaking", "bold cyan"),
    Interrupted: ("interrupted", "red"),
}  # fmt: skip
QUIET_DB, LOUD_DB = -70.0, -10.0
METER = 24
PARTS = ("endpoint_wait", "capture", "vad", "queue", "encode", "prefill", "first_token", "first_audio", "playback")


class View(Protocol):
    """Shows events; a context manager around the conversation."""

    def show(self, event: AssistantEvent) -> None: ...

    def __enter__(self) -> View: ...

    def __exit__(self, *exc: object) -> None: ...


def open_view(*, as_json: bool, timings: bool, push_to_talk: bool) -> View:
    """The one for this output. Without rich, plain lines."""
    if as_json:
        return JsonView()
    if sys.stdout.isatty():
        try:
            return LiveView(timings=timings, push_to_talk=push_to_talk)
        except ImportError as e:
            print(f"edge-sdk: plain lines, since rich is missing ({e}); pip install 'edge_sdk[audio]'", file=sys.stderr)
    return LineView(timings=timings)


class JsonView:
    """{"event": name, ...} a line; of a reply what is not sound."""

    def show(self, event: AssistantEvent) -> None:
        print(json.dumps({"event": type(event).__name__, **_plain(event)}), flush=True)

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class LineView:
    """For logs and simple terminals."""

    def __init__(self, *, timings: bool) -> None:
        self._timings = timings
        self._text = ""

    def show(self, event: AssistantEvent) -> None:
        if isinstance(event, Said):
            self._text += event.text
        elif isinstance(event, Answered):
            print(self._text.strip(), flush=True)
            print(summary(event.timings), flush=True)
            if self._timings:
                print(budget_line(event.timings), flush=True)
            self._text = ""
        elif isinstance(event, Calling):
            print(f"[{event.name} {json.dumps(event.arguments)}]", flush=True)
        elif isinstance(event, Failed):
            print(f"[{event.why}]", flush=True)
        elif isinstance(event, (Listening, Sleeping, Thinking, Interrupted)):
            print(f"[{STATES[type(event)][0]}]", flush=True)

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class LiveView:
    """State, level and the text that is being said in the last lines; what was said scrolls above them."""

    def __init__(self, *, timings: bool, push_to_talk: bool) -> None:
        from rich.live import Live
        from rich.text import Text

        self._text_of = Text
        self._timings = timings
        self._hint = "space: talk, space again: done, " if push_to_talk else ""
        self._state, self._style = "starting", "dim"
        self._level = Level(0.0, QUIET_DB, 0.0, False)
        self._said = self._last = ""
        self._live: Any = Live(self._lines(), refresh_per_second=12, transient=True)

    def show(self, event: AssistantEvent) -> None:
        if type(event) in STATES:
            self._state, self._style = STATES[type(event)]
        if isinstance(event, Level):
            self._level = event
        elif isinstance(event, Said):
            self._said += event.text
        elif isinstance(event, Speaking):
            self._last = f"first sound after {event.response_ms:.0f} ms"
        elif isinstance(event, Calling):
            self._above(f"{event.name} {json.dumps(event.arguments, ensure_ascii=False)}", "magenta")
        elif isinstance(event, Failed):
            self._above(event.why, "red")
        elif isinstance(event, Answered):
            self._answered(event)
        self._live.update(self._lines())

    def _answered(self, event: Answered) -> None:
        self._above(self._said.strip() or "(no text)", "cyan")
        self._said, self._last = "", summary(event.timings)
        if self._timings:
            self._above(budget_line(event.timings), "dim")

    def _above(self, text: str, style: str) -> None:
        self._live.console.print(self._text_of(text, style=style))

    def _lines(self) -> Any:
        filled = round(METER * np.clip((self._level.level_db - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1))
        meter = "█" * filled + "░" * (METER - filled)
        text = self._text_of()
        text.append(self._said[-500:] + "\n" if self._said else "", style="cyan")
        text.append(f"{self._state:<12}", style=self._style)
        text.append(f" {meter} ", style="green" if self._level.speech >= 0.5 else "dim")
        text.append(self._last + "\n", style="dim")
        text.append(f"{self._hint}Ctrl-C: leave", style="dim")
        return text

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()


def summary(t: TurnTimings) -> str:
    """One line for the turn that is over."""
    if t.response_ms is None:
        return "[nothing was played]"
    cut = f", interrupted after {t.played_ms / 1000:.1f} s" if t.interrupted else ""
    return f"[first sound after {t.response_ms:.0f} ms, of which the model took {t.engine_ms:.0f} ms{cut}]"


def budget_line(t: TurnTimings) -> str:
    """Where the time went, in the order in which it did."""
    values = {part: getattr(t, f"{part}_ms") for part in PARTS}
    return "ms: " + "  ".join(f"{part.replace('_', ' ')} {v:.0f}" for part, v in values.items() if v is not None)


def _plain(event: AssistantEvent) -> dict[str, Any]:
    if not isinstance(event, Answered):
        return dataclasses.asdict(event)
    reply = event.reply
    return {
        "at_s": event.at_s, "turn": event.turn, "text": reply.text, "finish_reason": reply.finish_reason,
        "tool_calls": [dataclasses.asdict(call) for call in reply.tool_calls],
        "audio_s": reply.timings.audio_s, "timings": dataclasses.asdict(event.timings),
    }  # fmt: skip
