"""Ask a bundle something: --audio and --text in, --out a WAV file. With neither, a conversation in text.

In the conversation a line is a question; `/audio FILE` asks with a recording, `/save FILE` writes the session,
`/out FILE` has replies written as WAV, `/reset` forgets, `/quit` or end of input leaves.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from edge_sdk.checks import check_path
from edge_sdk.commands.output import print_json
from edge_sdk.errors import Error
from edge_sdk.files import check_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="path; without it the bundle of the package")
    parser.add_argument("--audio", metavar="FILE", help="the question, WAV, FLAC, OGG or MP3; - for standard input")
    parser.add_argument("--text", help="the question, or what is added to the recording")
    parser.add_argument("--out", metavar="FILE", help="write the reply's sound as WAV")
    parser.add_argument("--json", action="store_true", help="print whole replies as JSON, one after the other")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--voice", help="a voice of the bundle")
    parser.add_argument("--no-speech", action="store_true", help="answer with text alone")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest speech ids instead of drawing")
    parser.add_argument("--seed", type=int, help="make the reply repeatable")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="text ids at most, 200 ms each")
    parser.add_argument("--vocoder", choices=("streaming", "whole"), default="streaming")
    parser.add_argument("--vocoder-steps", type=int, metavar="N", help="Euler steps of the flow")
    parser.add_argument("--context-tokens", type=int, default=2048, metavar="N")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int)


def run(args: argparse.Namespace) -> int:
    from edge_sdk.bundle import Bundle
    from edge_sdk.chat import Chat
    from edge_sdk.generation import GenerationConfig

    with Bundle.open(args.bundle) as bundle, Chat(
        bundle, runtime=args.runtime, threads=args.threads, system=args.system, voice=args.voice,
        speech=not args.no_speech, context_tokens=args.context_tokens, vocoder=args.vocoder,
        generation=GenerationConfig.of_bundle(bundle).replace(**drawn(args)),
    ) as chat:  # fmt: skip
        if args.out:
            _check_out(chat, args.out)
        if args.audio is not None or args.text is not None:
            return _ask(chat, args)
        return _converse(chat, args)


def drawn(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of how replies are made; the rest is the bundle's."""
    chosen = {"max_new_tokens": args.max_new_tokens, "vocoder_steps": args.vocoder_steps, "seed": args.seed}
    given = {name: value for name, value in chosen.items() if value is not None}
    return given | ({"do_sample": False} if args.greedy else {})


def _check_out(chat: Any, out: str) -> None:
    """Before a reply is made for it."""
    if not chat.sample_rate:
        raise Error("--out wants sound: leave --no-speech out, and take a bundle with a vocoder")
    check_place(check_path("the place for the sound", out))


def _ask(chat: Any, args: argparse.Namespace) -> int:
    reply = chat.send(sys.stdin.buffer.read() if args.audio == "-" else args.audio, args.text)
    _print_reply(reply, args)
    if args.out:
        reply.save(args.out)
    return 0


def _print_reply(reply: Any, args: argparse.Namespace) -> None:
    if args.json:
        value = {
            "text": reply.text, "text_ids": reply.text_ids, "speech_ids": reply.speech_ids,
            "tool_calls": [dataclasses.asdict(c) for c in reply.tool_calls], "finish_reason": reply.finish_reason,
            "audio_s": reply.timings.audio_s, "timings": dataclasses.asdict(reply.timings), "out": args.out,
        }  # fmt: skip
        print_json(value)
        return
    print(reply.text)
    timings, sound = reply.timings, ""
    if timings.ttfa_ms is not None:
        sound = f", first sound after {timings.ttfa_ms:.0f} ms, {timings.audio_s:.2f} s of sound, RTF {timings.rtf:.2f}"
    print(f"[{reply.finish_reason}; first token after {timings.ttft_ms:.0f} ms{sound}]", file=sys.stderr)


def _converse(chat: Any, args: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        if line in ("/quit", "/exit"):
            return 0
        try:
            _line(chat, line, args)
        except Error as e:
            print(f"edge-sdk: {e}", file=sys.stderr)


def _line(chat: Any, line: str, args: argparse.Namespace) -> None:
    """One line of the conversation; `args.out` is where replies are written from now on."""
    command, _, argument = line.partition(" ")
    if command == "/reset":
        chat.reset()
    elif command == "/save":
        chat.save(argument)
    elif command == "/out":
        if argument:
            _check_out(chat, argument)
        args.out = argument or None
    elif command == "/audio":
        _say(chat, argument, None, args)
    elif line and not line.startswith("/"):
        _say(chat, None, line, args)
    elif line:
        print(f"unknown command {command}; there are /audio /out /save /reset /quit", file=sys.stderr)


def _say(chat: Any, audio: str | None, text: str | None, args: argparse.Namespace) -> None:
    from edge_sdk.events import TextDelta

    with chat.stream(audio, text) as events:
        try:
            for event in events:
                if isinstance(event, TextDelta) and not args.json:
                    print(event.text, end="", flush=True)
        except KeyboardInterrupt:
            chat.interrupt()
    if args.json and events.reply is not None:
        _print_reply(events.reply, args)
    else:
        print()
    if args.out and events.reply is not None:
        events.reply.save(args.out)
