"""Functions the model may call: each is run when it does, and its result is answered.

python samples/tools.py [BUNDLE]
"""

import sys
from datetime import datetime
from typing import Annotated, Literal

import edge_sdk

lamps = {"kitchen": False, "hall": True}


def set_lamp(room: Literal["kitchen", "hall"], on: bool) -> dict[str, bool]:
    """Turn a lamp on or off."""
    lamps[room] = on
    return lamps


def time_now(zone: Annotated[str, "offset from UTC such as +02:00"] = "+00:00") -> str:
    """The time of day."""
    offset = datetime.fromisoformat(f"2000-01-01T00:00{zone}").tzinfo
    return datetime.now(offset).strftime("%H:%M")


with edge_sdk.Chat(
    sys.argv[1] if len(sys.argv) > 1 else None,
    speech=False,
    tools=[set_lamp, time_now],
    generation=edge_sdk.GenerationConfig(max_new_tokens=64),
) as chat:
    for event in chat.stream(text="Is the light in the kitchen on? If not, turn it on."):
        if isinstance(event, edge_sdk.TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, edge_sdk.ToolCall):
            print(f"\n[{event.name} {event.arguments}]")
    print()
