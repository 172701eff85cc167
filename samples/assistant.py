"""A voice assistant: talk, and it answers; talk over it, and it listens. Ctrl-C ends it.

    python samples/assistant.py [BUNDLE]

Needs the extra `audio`, a microphone and a speaker.
"""

import sys

import edge_sdk
from edge_sdk import assistant_events as events


def time_now() -> str:
    """The time of day."""
    from datetime import datetime

    return datetime.now().strftime("%H:%M")


def show(event: events.AssistantEvent) -> None:
    """What a user interface would draw."""
    if isinstance(event, events.Listening):
        print("(listening)", flush=True)
    elif isinstance(event, events.Said):
        print(event.text, end="", flush=True)
    elif isinstance(event, events.Calling):
        print(f"[{event.name}]", flush=True)
    elif isinstance(event, events.Interrupted):
        print(f" -- interrupted after {event.played_ms / 1000:.1f} s", flush=True)
    elif isinstance(event, events.Answered) and event.timings.response_ms is not None:
        t = event.timings
        print(f"\n[first sound after {t.response_ms:.0f} ms; the model took {t.engine_ms:.0f} of them]", flush=True)


config = edge_sdk.GenerationConfig(max_new_tokens=60)
with edge_sdk.Chat(sys.argv[1] if len(sys.argv) > 1 else None, tools=[time_now], generation=config) as chat:
    try:
        chat.run(on_event=show)
    except KeyboardInterrupt:
        print()
    except edge_sdk.DeviceError as e:
        sys.exit(f"no sound here: {e}")
