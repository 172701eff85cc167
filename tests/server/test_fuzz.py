"""Whatever comes in: the session goes on, keeps its promises, and knows nothing of the others."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Drawn
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from edge_sdk.bundle import Bundle
from edge_sdk.server.limits import Limits
from tests.server.driven import Driven
from tests.server.running import SPEECH, recording, run, serving

KINDS = ("session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
         "conversation.item.create", "conversation.item.retrieve", "conversation.item.delete",
         "conversation.item.truncate", "response.create", "response.cancel")  # fmt: skip
NAMES = ("type", "event_id", "session", "audio", "item", "item_id", "previous_item_id", "content_index", "audio_end_ms",
         "response", "response_id", "input", "output", "format", "turn_detection", "threshold", "tools", "name",
         "parameters", "content", "text", "role", "call_id", "arguments", "metadata", "conversation", "voice",
         "instructions", "modalities", "output_modalities", "temperature", "max_output_tokens", "rate")  # fmt: skip
WORDS = (*KINDS, "message", "function_call", "function_call_output", "user", "assistant", "system", "input_text",
         "input_audio", "audio/pcm", "audio/pcmu", "server_vad", "semantic_vad", "auto", "none", "root")  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(WORDS),
    st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode()),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), inner, max_size=5),
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
messages = st.one_of(
    st.text(max_size=40),
    values.map(json.dumps),
    st.builds(lambda kind, rest: json.dumps({**rest, "type": kind}), st.sampled_from(KINDS), objects),
)


def fuzz(bundle: Bundle, count: int) -> None:
    """All in one session, so that what an earlier message left behind is there for the later ones."""
    with Driven(bundle, steps=2) as driven:

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(messages)
        def throw(text: str) -> None:
            before = len(driven.events)
            driven.session.handle(text)
            while driven.session.responding:
                driven.session.ended(driven._ended.get(timeout=30))
            made = driven.events[before:]
            assert all(e["error"]["code"] != "internal_error" for e in made if e["type"] == "error"), made
            json.dumps(made, allow_nan=False)

        throw()
        driven.do("session.update", session={"type": "realtime", "tools": [], "output_modalities": ["audio"]})
        driven.do("input_audio_buffer.clear")
        driven.say("still here")
        assert driven.answer()[-2]["response"]["status"] in ("incomplete", "completed")


def test_malformed_messages(bundle: Bundle) -> None:
    fuzz(bundle, 400)


@pytest.mark.slow
def test_ten_thousand_malformed_messages(bundle: Bundle) -> None:
    fuzz(bundle, 10_000)


# -- a state machine: every order of valid events


QUESTION = recording(SPEECH / "tts_hibari_cmd_stop.flac")
SOUND = base64.b64encode(QUESTION[:12000].astype("<i2").tobytes()).decode()


def machine(bundle: Bundle) -> type[RuleBasedStateMachine]:
    class Protocol(RuleBasedStateMachine):
        """The model: which items there are, and whether there is sound in the buffer."""

        items = Drawn("items")

        def __init__(self) -> None:
            super().__init__()
            self.driven = Driven(bundle, steps=6)
            self.order: list[str] = []
            self.sound = 0
            self.driven.do("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})

        def teardown(self) -> None:
            self.driven.session.close()

        def error(self, events: list[Any]) -> str | None:
            return events[-1]["error"]["code"] if events[-1]["type"] == "error" else None

        @rule(
            target=items, role=st.sampled_from(["user", "assistant", "system"]), words=st.text(min_size=1, max_size=9)
        )
        def create(self, role: str, words: str) -> str:
            item = self.driven.say(words, role)
            self.order.append(item)
            return item

        @rule(item=consumes(items))
        def delete(self, item: str) -> None:
            assert self.driven.do("conversation.item.delete", item_id=item)[-1]["type"] == "conversation.item.deleted"
            self.order.remove(item)

        @rule(item=items)
        def retrieve(self, item: str) -> None:
            assert self.driven.do("conversation.item.retrieve", item_id=item)[-1]["item"]["id"] == item

        @rule(item=items, end_ms=st.integers(0, 2000))
        def truncate(self, item: str, end_ms: int) -> None:
            fields = {"item_id": item, "content_index": 0, "audio_end_ms": end_ms}
            events = self.driven.do("conversation.item.truncate", **fields)
            assert self.error(events) in (None, "item_truncate_invalid_item_id", "invalid_value")

        @rule()
        def append(self) -> None:
            self.driven.do("input_audio_buffer.append", audio=SOUND)
            self.sound += 1

        @rule()
        def clear(self) -> None:
            assert self.driven.do("input_audio_buffer.clear")[-1]["type"] == "input_audio_buffer.cleared"
            self.sound = 0

        @rule(target=items)
        def commit(self) -> Any:
            events = self.driven.do("input_audio_buffer.commit")
            assert self.error(events) == (None if self.sound else "input_audio_buffer_commit_empty")
            if not self.sound:
                return self.create("user", "x")
            self.sound = 0
            self.order.append(events[0]["item_id"])
            return events[0]["item_id"]

        @rule(target=items, text=st.booleans())
        def respond(self, text: bool) -> Any:
            turns = self.driven.session._items.turns()
            if not turns or turns[-1][0].role == "assistant":
                assert self.error(self.driven.do("response.create")) == "nothing_to_answer"
                return self.create("user", "y")
            events = self.driven.answer(output_modalities=["text" if text else "audio"])
            made = events[-2]["response"]
            assert made["status"] in ("incomplete", "completed")
            self.order.append(made["output"][0]["id"])
            return made["output"][0]["id"]

        @rule(system=st.text(max_size=20))
        def configure(self, system: str) -> None:
            events = self.driven.do("session.update", session={"type": "realtime", "instructions": system})
            assert events[-1]["type"] == "session.updated"

        @invariant()
        def the_items_are_the_models(self) -> None:
            assert [item.id for item in self.driven.session._items] == self.order

    return Protocol


def test_every_order_of_events(bundle: Bundle) -> None:
    chosen = settings(max_examples=12, stateful_step_count=20, deadline=None, database=None)
    run_state_machine_as_test(machine(bundle), settings=chosen)  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_many_orders_of_events(bundle: Bundle) -> None:
    chosen = settings(max_examples=150, stateful_step_count=40, deadline=None, database=None)
    run_state_machine_as_test(machine(bundle), settings=chosen)  # type: ignore[no-untyped-call]


# -- frames, on the wire


FRAMES = (
    b"\x00", b"\xff" * 40, b"\x81\xff" + b"\xff" * 12, b"\x83\x80\0\0\0\0", b"\xc1\x80\0\0\0\0",
    b"\x89\xfe\x00\xff", b"\x81\x82\0\0\0\0\xff\xff", b"\x82\x80\0\0\0\0", b"\x88\x81\0\0\0\0\x00",
    b"\x01\x80\0\0\0\0\x01\x80\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n", b"\x81\x05hello",
)  # fmt: skip


def test_malformed_frames_end_their_session_alone(bundle: Bundle) -> None:
    """Two sessions talk on meanwhile, each of its own matter."""

    async def frame(port: int, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 20)
        writer.close()

    async def talk(url: str, matter: str) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/v1/realtime") as peer:
            for n in range(5):
                item = {"type": "message", "role": "user", "id": f"{matter}{n}",
                        "content": [{"type": "input_text", "text": matter}]}  # fmt: skip
                await peer.send_json({"type": "conversation.item.create", "item": item})
                await peer.send_json({"type": "response.create", "response": {"max_output_tokens": 4}})
                while (event := await peer.receive_json())["type"] != "response.done":
                    shown = json.dumps(event)
                    assert event["type"] != "error"
                    assert "other" not in shown or matter == "other"
                    assert "mine" not in shown or matter == "mine"
            await peer.send_json({"type": "conversation.item.retrieve", "item_id": "mine0"})
            while (event := await peer.receive_json())["type"] not in ("conversation.item.retrieved", "error"):
                pass
            assert (event["type"] == "error") == (matter == "other")

    async def check() -> None:
        with serving(bundle, limits=Limits(close_s=0.5, max_sessions=200)) as running:
            await asyncio.gather(
                talk(running.url, "mine"), talk(running.url, "other"), *(frame(running.port, f) for f in FRAMES * 3)
            )
            for _ in range(1000):
                if not running.sessions:
                    break
                await asyncio.sleep(0.01)
            assert running.sessions == 0

    run(check())
    assert not [t for t in threading.enumerate() if t.name.startswith("edge_sdk-")]
