"""Talk with a bundle: microphone in, speaker out, until Ctrl-C (or SIGTERM).

In a terminal it shows who speaks, the level of the microphone, the text and the last turn's latency; with --json, or
where standard output is no terminal, one line for each event. With --push-to-talk the space bar or Enter begins an
utterance and ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_sdk.errors import Error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="path; without it the bundle of the package")
    parser.add_argument("--input", metavar="DEVICE", help="microphone: an index, or part of its name")
    parser.add_argument("--output", metavar="DEVICE", help="speaker: an index, or part of its name")
    parser.add_argument("--list-devices", action="store_true", help="show the devices, and leave")
    parser.add_argument("--push-to-talk", action="store_true", help="hear only what is said between two key presses")
    parser.add_argument("--no-barge-in", action="store_true", help="hear nothing while answering")
    parser.add_argument("--wake-word", metavar="NAME", help="listen after this word only, hey_jarvis say (extra wake)")
    parser.add_argument("--echo", choices=("auto", "webrtc", "speex", "off"), default="auto", help="echo cancelling")
    parser.add_argument("--session", metavar="FILE", help="go on with the conversation in it, and keep it there")
    parser.add_argument(
        "--record", metavar="FOLDER", help="keep the sound of every turn there; nothing is kept without"
    )
    parser.add_argument("--timings", action="store_true", help="after every turn, where its time went")
    parser.add_argument("--trace", metavar="FILE", help="write a trace for Chrome's or Perfetto's viewer")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each event")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--voice", help="a voice of the bundle")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of a reply, text ids at most, 200 ms each")
    parser.add_argument("--context-tokens", type=int, default=2048, metavar="N")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int)


def run(args: argparse.Namespace) -> int:
    if args.list_devices:
        return _list_devices(args)
    from edge_sdk.sound_card import SoundCard

    card = SoundCard(
        input_device=_device(args.input), output_device=_device(args.output), echo_cancellation=args.echo
    )  # fmt: skip
    try:
        card.start()  # before a bundle is loaded for it
        with _open_chat(args) as chat:
            _talk(chat, card, args)
    finally:
        card.close()
    return 0


def _list_devices(args: argparse.Namespace) -> int:
    from edge_sdk.audio_devices import list_devices
    from edge_sdk.commands.output import print_json, print_table

    devices = list_devices()
    if args.json:
        print_json(devices)
        return 0
    header = ("index", "name", "inputs", "outputs", "Hz", "default")
    rows = [
        (d["index"], d["name"], d["inputs"], d["outputs"], d["sample_rate"], _defaults(d)) for d in devices
    ]  # fmt: skip
    print_table(rows, header)
    return 0


def _defaults(device: dict[str, Any]) -> str:
    return " ".join(way for way in ("input", "output") if device[f"default_{way}"])


def _device(given: str | None) -> str | int | None:
    return int(given) if given is not None and given.isdecimal() else given


def _open_chat(args: argparse.Namespace) -> Any:
    from edge_sdk.bundle import Bundle
    from edge_sdk.chat import Chat
    from edge_sdk.generation import GenerationConfig

    generation = None
    if args.max_new_tokens is not None:
        with Bundle.open(args.bundle) as bundle:
            generation = GenerationConfig.of_bundle(bundle).replace(max_new_tokens=args.max_new_tokens)
    options: dict[str, Any] = {
        "runtime": args.runtime, "threads": args.threads, "voice": args.voice, "context_tokens": args.context_tokens,
        "generation": generation,
    }  # fmt: skip
    if args.session is not None and Path(args.session).exists():
        if args.system is not None:
            raise Error(f"--system cannot be changed in the middle of the conversation in '{args.session}'")
        return Chat.restore(args.bundle, args.session, **options)
    return Chat(args.bundle, system=args.system, **options)


def _talk(chat: Any, card: Any, args: argparse.Namespace) -> None:
    from edge_sdk.assistant import Assistant
    from edge_sdk.barge_in import BargeInConfig
    from edge_sdk.commands.conversation_view import open_view
    from edge_sdk.endpoint_config import EndpointConfig
    from edge_sdk.keyboard import terminated_by
    from edge_sdk.wake_word import MicroWakeWord

    view = open_view(as_json=args.json, timings=args.timings, push_to_talk=args.push_to_talk)
    assistant = Assistant(
        chat, card, on_event=view.show,
        endpoint=EndpointConfig(mode="push_to_talk" if args.push_to_talk else "always"),
        barge_in=BargeInConfig(enabled=not args.no_barge_in),
        wake_word=None if args.wake_word is None else MicroWakeWord(args.wake_word),
        session=args.session, record=args.record, trace=args.trace,
    )  # fmt: skip
    keys = _keys(assistant) if args.push_to_talk else contextlib.nullcontext()
    with view, keys, terminated_by(assistant.stop), contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        assistant.run()


@contextlib.contextmanager
def _keys(assistant: Any) -> Iterator[None]:
    """Space or Enter: down, up, down, ... A terminal does not tell when a key is let go."""
    if not sys.stdin.isatty():
        raise Error("--push-to-talk needs a terminal with a keyboard as standard input")
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    left = threading.Event()
    thread = threading.Thread(target=_read_keys, args=(assistant, left), name="edge_sdk-keys", daemon=True)
    try:
        tty.setcbreak(sys.stdin)
        thread.start()
        yield
    finally:
        left.set()
        thread.join()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _read_keys(assistant: Any, left: threading.Event) -> None:
    import select

    down = False
    while not left.is_set():
        if not select.select([sys.stdin], [], [], 0.1)[0]:
            continue
        keys = os.read(sys.stdin.fileno(), 64)  # not by a buffer, in which a second key would wait for the next
        if not keys:
            return
        for key in keys:
            if key in b" \n\r":
                down = not down
                assistant.press() if down else assistant.release()
