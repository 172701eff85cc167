"""The command list: every command says what it is and takes what it promises; mistakes are one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.errors import Error
from samples.nano import __main__ as recipe
from samples.nano.settings import NANO, PRESETS, TINY

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Any:
    return subprocess.run([sys.executable, "-m", "samples.nano", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_without_a_command_they_are_listed() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert listed == list(recipe.COMMANDS)


@pytest.mark.parametrize("name", recipe.COMMANDS)
def test_every_command_is_one(name: str, capsys: Any) -> None:
    if "not in this tree" in recipe.summary(recipe.COMMANDS[name]):
        pytest.skip(f"{recipe.COMMANDS[name]} is not in this tree")
    assert recipe.summary(recipe.COMMANDS[name])
    try:
        status = recipe.main([name, "--help"])
    except SystemExit as e:  # argparse's way to end after the help
        status = int(str(e.code))
    found = capsys.readouterr()
    if "needs the package" in found.err:
        pytest.skip(found.err.strip())
    assert (status, found.err) == (0, "")
    assert "--preset" in found.out
    assert "--work" in found.out


def test_a_command_that_is_none() -> None:
    done = run("sing")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("samples.nano.gone", "error: the command 'x' is not in this tree: there is no samples.nano.gone"),
        ("package_that_is_none", "error: 'x' needs the package package_that_is_none: python -m pip install -r"),
    ],
)
def test_what_is_missing_is_named(module: str, said: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(recipe, "COMMANDS", {"x": module})
    assert recipe.main(["x"]) == 1
    assert capsys.readouterr().err.startswith(said)


FIRST = {
    "tokenizer": "texts", "render": "texts", "listen": "texts", "codec": "render", "encode": "codec", "flow": "codec",
    "waveform": "render", "resynthesize": "render", "vocoder": "flow", "start": "tokenizer", "text": "start",
    "hear": "start", "prealign": "text", "cocktail1": "prealign", "merge": "prealign", "cocktail2": "merge",
    "tune": "waveform", "dpo": "cocktail2", "evaluate": "text", "score": "start", "card": "score", "ship": "score",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in recipe.COMMANDS if name not in ("texts", "weights", "language")])
def test_in_an_empty_work_folder_it_says_what_comes_first(name: str, tmp_path: Path, capsys: Any) -> None:
    more = ["--bundle", "mixed"] if name in ("card", "ship") else []
    assert recipe.main([name, "--preset", "tiny", "--work", str(tmp_path / "work"), *more]) == 1
    said = capsys.readouterr().err
    if "needs the package" in said or " is missing: python -m pip" in said:
        pytest.skip(said.strip())
    assert said.endswith(f": run python -m samples.nano {FIRST[name]} first\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "work").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("codec", "--minutes", ["-1", "nan", "soon"]),
        ("encode", "--minutes", ["-1", "nan"]),
        ("text", "--minutes", ["-1", "nan"]),
        ("text", "--story-share", ["-0.1", "1.1", "nan", "inf"]),
        ("text", "--prompt-weight", ["-1", "nan", "inf", "1e7"]),
        ("text", "--batch", ["-1", "0", "1.5", "9" * 5000]),
        ("text", "--figures-share", ["-0.1", "2", "nan"]),
        ("text", "--replies-weight", ["-1", "nan"]),
        ("cocktail1", "--backbone-rate", ["-1", "1.1"]),
        ("flow", "--rows", ["0", "4097"]),
        ("prealign", "--typed-share", ["-1", "2", "nan"]),
        ("prealign", "--sil-weight", ["-1", "nan"]),
        ("dpo", "--beta", ["-1", "inf"]),
        ("dpo", "--lead-steps", ["-1", "100000"]),
        ("cocktail2", "--head-context", ["-1", "few"]),
        ("render", "--takes", ["0", "9999999"]),
    ],
)
def test_numbers_that_mean_nothing_are_wrong_usage(name: str, option: str, values: list[str], capsys: Any) -> None:
    for value in values:
        try:
            status = recipe.main([name, option, value])
        except SystemExit as e:  # argparse's way to say so
            status = int(str(e.code))
        said = capsys.readouterr().err
        if "needs the package" in said:
            pytest.skip(said.strip())
        assert status == 2
        assert f"argument {option}: must be" in said
        assert len(said.splitlines()[-1]) < 200


def test_a_command_gets_its_settings(monkeypatch: Any, capsys: Any) -> None:
    given: list[Any] = []

    class Command:
        """A command."""

        @staticmethod
        def add_arguments(parser: Any) -> None:
            parser.add_argument("--count", type=int)
            parser.add_argument("--work", help="its own words", default="elsewhere")

        @staticmethod
        def run(options: Any) -> int:
            given.append(options)
            if options.count == 9:
                raise Error("nine is too many")
            if options.count == 8:
                raise KeyboardInterrupt
            Path("gone", str(options.count)).write_text("")
            return 0

    monkeypatch.setattr(recipe, "COMMANDS", {"x": "x"})
    monkeypatch.setattr(importlib, "import_module", lambda name: Command)
    assert recipe.main(["x", "--preset", "tiny", "--count", "3"]) == 1
    assert (given[0].settings, given[0].count, given[0].work) == (TINY, 3, "elsewhere")
    assert capsys.readouterr().err == "error: No such file or directory: 'gone/3'\n"
    assert recipe.main(["x", "--count", "9"]) == 1
    assert given[1].settings == NANO
    assert capsys.readouterr().err == "error: nine is too many\n"
    assert recipe.main(["x", "--count", "8"]) == 130


@pytest.mark.parametrize("settings", PRESETS.values(), ids=lambda s: s.name)
def test_presets_are_of_the_family(settings: Any) -> None:
    """Every check of the specs that write config.json and cosyvoice3.yaml, and the rates fit one another."""
    language, vocoder = settings.language_spec(), settings.vocoder_spec()
    assert vocoder.codes == language.speech.real == settings.codec.codes
    assert language.vocab_size % 32 == 0
    assert settings.language_spec(300).text_tokens == 300
    assert settings.sound.frames_per_token == 2
    assert language.encoder.n_mels == settings.encoder.n_mels
