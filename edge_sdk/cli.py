"""`edge-sdk`: the command line. Each command imports its part when it runs.

Exit status: 0 done, 1 it failed (one line says why), 2 the command line was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from edge_sdk import __version__
from edge_sdk.errors import Error

COMMANDS = {
    "chat": "ask a bundle something: a file in, a file out, or a conversation in text",
    "run": "talk: microphone in, speaker out",
    "export": "turn a checkpoint into a bundle",
    "merge": "merge two checkpoints into a third",
    "verify": "check a bundle: every byte, its self-test, or against its checkpoint",
    "inspect": "show what is in a bundle",
    "bench": "measure every stage beside its physical limit",
    "build-engine": "build a bundle's TensorRT engines",
    "serve": "serve a bundle to Realtime clients, with a page to talk to it",
    "doctor": "show what is installed here, and what can run",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-sdk",
        description="On-device speech-to-speech. `edge-sdk COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"edge_sdk {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show the log")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"edge_sdk.commands.{name.replace('-', '_')}")
        sub = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    _mend_standard_streams()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # what cannot be written is said here, not at exit
    except Error as e:
        print(f"edge-sdk: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("edge-sdk: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`edge-sdk inspect ... | head`): nothing is left to say, not even at exit.
        _drop_output()
        return 0
    except OSError as e:
        _drop_output()
        print(f"edge-sdk: {e.strerror or e}" + (f": '{e.filename}'" if e.filename else ""), file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    args = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    status: int = args.run(args)
    return status


def _mend_standard_streams() -> None:
    """Have all three, closed ones as nothing, and let no character stop them.

    In this order: a closed one's number is the next that is given out, and libraries write to 1 and 2.
    """
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"),  # refused where text is checked, with a line that says so
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
