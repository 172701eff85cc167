"""Serve a bundle to programs that speak OpenAI's Realtime protocol, and a page to talk to it at /.

Listens on this machine alone unless --host says otherwise; then clients need a token. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import Error

if TYPE_CHECKING:
    import ssl

    from edge_sdk.server.app import Server

_TOKEN_VARIABLE = "EDGE_SDK_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="path; without it the bundle of the package")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8321, help="0 takes a free one")
    parser.add_argument("--token", help=f"what clients must know; better in the environment as {_TOKEN_VARIABLE}")
    parser.add_argument("--open-to-all", action="store_true", help="listen beyond this machine without a token")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name of this machine")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a page that may connect")
    parser.add_argument("--cert", metavar="FILE", help="TLS certificate (PEM): browsers want it beyond this machine")
    parser.add_argument("--key", metavar="FILE", help="its key, if it is not in the same file")
    parser.add_argument("--system", help="system prompt of sessions that set none")
    parser.add_argument("--sessions", type=int, metavar="N", help="clients at once (64)")
    parser.add_argument("--slots", type=int, metavar="N", help="responses generated at once (2)")
    parser.add_argument("--queue", type=int, metavar="N", help="responses that may wait for that (16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="text ids of a response at most, 200 ms each")
    parser.add_argument("--context-tokens", type=int, default=2048, metavar="N")
    parser.add_argument("--vocoder-steps", type=int, metavar="N", help="Euler steps of the flow")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest speech ids instead of drawing")
    parser.add_argument("--seed", type=int, help="make replies repeatable")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--log-words", action="store_true", help="write into the log what the model says")
    parser.add_argument("--json", action="store_true", help="print where it listens as JSON")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.server.access import Access, check_access
    from edge_sdk.server.app import Server
    from edge_sdk.server.logs import set_up

    token = args.token or os.environ.get(_TOKEN_VARIABLE) or None
    check_access(args.host, token, open_to_all=args.open_to_all)
    tls = _tls(args.cert, args.key)
    access = Access(token, tuple(args.allow_host), tuple(args.allow_origin))
    log = set_up(sys.stderr, words=args.log_words)
    try:
        with _service(args) as service:
            log.dropped = service.metrics.log_dropped.inc
            asyncio.run(_serve(Server(service, access), args, tls))
    finally:
        log.close()  # before anything else is written there
    return 0


@contextlib.contextmanager
def _service(args: argparse.Namespace) -> Any:
    from edge_sdk.bundle import Bundle
    from edge_sdk.commands.chat import drawn
    from edge_sdk.generation import GenerationConfig
    from edge_sdk.server.limits import Limits
    from edge_sdk.server.service import Service

    chosen = {"max_sessions": args.sessions, "slots": args.slots, "queue": args.queue}
    limits = Limits(**{name: value for name, value in chosen.items() if value is not None})
    options = {"runtime": args.runtime, "threads": args.threads, "context_tokens": args.context_tokens}
    with Bundle.open(args.bundle) as bundle:
        generation = GenerationConfig.of_bundle(bundle).replace(**drawn(args))
        service = Service(bundle, limits, options, generation, args.system, args.log_words)
        service.open_chat(bool(service.voices)).close()  # what cannot be used is said now, not to the first client
        yield service


async def _serve(server: Server, args: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.start(args.host, args.port, tls)
    _say_where(server, args, tls)
    try:
        await stop.wait()
    finally:
        await server.stop()


def _say_where(server: Server, args: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    host = f"[{args.host}]" if ":" in args.host else args.host
    place = f"{host}:{server.port}"
    page = f"http{'s' if tls else ''}://{place}/"
    socket = f"ws{'s' if tls else ''}://{place}/v1/realtime"
    if args.json:
        print(json.dumps({"page": page, "realtime": socket, "port": server.port}), flush=True)
        return
    print(f"talk to it at       {page}{'?token=...' if server.access.token else ''}")
    print(f"Realtime clients    {socket}", flush=True)


def _tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    import ssl

    if cert is None:
        if key is not None:
            raise Error("--key was given without --cert")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as e:
        raise Error(f"the certificate '{cert}' cannot be used: {e}") from e
    return context
