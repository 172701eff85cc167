"""python -m samples.nano COMMAND: the training recipe of drsr-nano, one command a step; without one it lists them.

A command is a module with `add_arguments(parser)` and `run(options) -> int`, imported when it is called. Every one has
`--preset` and `--work`, and finds them as `options.settings` and `options.work`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.errors import Error
from samples.nano.settings import PRESETS

# In the order in which a model is made.
COMMANDS = {
    "texts": "samples.nano.texts.write",
    "tokenizer": "samples.nano.texts.train_tokenizer",
    "render": "samples.nano.voices.render",
    "listen": "samples.nano.voices.listen",
    "codec": "samples.nano.codec.train_tokenizer",
    "weights": "samples.nano.codec.weights",
    "encode": "samples.nano.codec.encode",
    "flow": "samples.nano.codec.train_flow",
    "waveform": "samples.nano.codec.train_waveform",
    "tune": "samples.nano.codec.tune_waveform",
    "resynthesize": "samples.nano.codec.resynthesize",
    "vocoder": "samples.nano.codec.write_vocoder",
    "start": "samples.nano.model.start",
    "language": "samples.nano.model.kept",
    "text": "samples.nano.stages.text",
    "hear": "samples.nano.stages.hear",
    "prealign": "samples.nano.stages.prealign",
    "cocktail1": "samples.nano.stages.cocktail1",
    "merge": "samples.nano.stages.merge",
    "cocktail2": "samples.nano.stages.cocktail2",
    "dpo": "samples.nano.stages.dpo",
    "evaluate": "samples.nano.stages.evaluate",
    "score": "samples.nano.ship.score",
    "card": "samples.nano.ship.card",
    "ship": "samples.nano.ship.ship",
}
WORK = Path("out") / "nano"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 it failed (one line says why), 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        _list_commands()
        return 0
    try:
        return _run(given)
    except Error as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"error: {e.strerror or e}" + (f": '{e.filename}'" if e.filename else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m samples.nano", description=_about(__file__))
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    name = parser.parse_args(given[:1]).command
    module = _module(name)
    # "resolve": a command may say more about the shared options than we do.
    parser = argparse.ArgumentParser(
        prog=f"python -m samples.nano {name}", description=module.__doc__, conflict_handler="resolve"
    )
    parser.add_argument("--preset", choices=list(PRESETS), default="nano", help="sizes (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of all that is made (default: %(default)s)")
    module.add_arguments(parser)
    options = parser.parse_args(given[1:])
    options.settings = PRESETS[options.preset]
    status: int = module.run(options)
    return status


def _module(name: str):  # type: ignore[no-untyped-def]  # a module with two functions, see above
    try:
        return importlib.import_module(COMMANDS[name])
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("samples"):
            raise Error(f"the command '{name}' is not in this tree: there is no {e.name}") from e
        raise Error(
            f"'{name}' needs the package {e.name}: python -m pip install -r samples/nano/requirements.txt"
        ) from e


def _list_commands() -> None:
    presets = "|".join(PRESETS)
    print(f"python -m samples.nano COMMAND [--preset {presets}] [--work FOLDER] ...; COMMAND --help explains one\n")
    for name, module in COMMANDS.items():
        print(f"  {name:<14}{summary(module)}")


def summary(module: str) -> str:
    """The first line of a module's docstring, read without importing what it needs."""
    path = Path(__file__).parents[2] / Path(*module.split(".")).with_suffix(".py")
    return _about(path) if path.is_file() else "(not in this tree)"


def _about(path: str | Path) -> str:
    text = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
