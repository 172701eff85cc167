"""The trained language half in the tree: what is taken is what was kept, to the rounding; the rest is as it was."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from samples.nano import __main__ as commands
from samples.nano.codec.weights import WEIGHTS
from samples.nano.model.checkpoint import load
from samples.nano.model.fresh import write_fresh
from samples.nano.model.kept import ABOUT, LANGUAGE, TENSORS
from samples.nano.settings import POCKET, TINY
from samples.nano.voices.packages import WHISPER_TINY_EN, is_installed
from tests import tolerances


def command(*given: object) -> int:
    return commands.main(["language", *map(str, given)])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    write_text_tokenizer(tmp_path / "tokenizer", TINY.language_spec())
    write_fresh(tmp_path / "trained", TINY, tmp_path / "tokenizer", whisper=None, seed=5)
    return tmp_path / "trained"


def test_there_and_back(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, work = tmp_path / "kept", tmp_path / "work"
    assert command("--preset", "tiny", "--weights", kept, "--save", checkpoint) == 0
    assert command("--preset", "tiny", "--work", work, "--weights", kept) == 0
    before, after = load(checkpoint).model.state_dict(), load(work / LANGUAGE).model.state_dict()
    for name, value in before.items():
        step = value.abs().amax(dim=-1, keepdim=True) * tolerances.KEPT_STEP
        assert ((after[name] - value).abs() <= step).all(), name
    files = [
        {p.name for p in folder.iterdir() if not p.name.endswith("safetensors")}
        for folder in (checkpoint, work / LANGUAGE)
    ]
    assert files[0] == files[1]
    assert all(
        (checkpoint / name).read_bytes() == (work / LANGUAGE / name).read_bytes()
        for name in files[0]
        if (checkpoint / name).is_file()
    )
    size = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))
    assert (kept / TENSORS).stat().st_size < size / 3
    capsys.readouterr()
    assert command("--preset", "tiny", "--work", work, "--weights", kept) == 1
    assert "is there already" in capsys.readouterr().err


def test_mistakes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, work = tmp_path / "kept", tmp_path / "work"
    for says, preset in (("has no trained language half", "tiny"), ("of the preset 'tiny', not 'small'", "small")):
        assert command("--preset", preset, "--work", work, "--weights", kept) == 1
        assert says in capsys.readouterr().err
        assert command("--preset", "tiny", "--weights", kept, "--save", checkpoint) == 0
    before = (kept / TENSORS).read_bytes()
    capsys.readouterr()
    assert command("--preset", "small", "--weights", kept, "--save", checkpoint) == 1
    fits = "does not fit the preset 'small'" if is_installed(WHISPER_TINY_EN) else f"{WHISPER_TINY_EN[0]} is missing"
    assert fits in capsys.readouterr().err
    assert (kept / TENSORS).read_bytes() == before
    (kept / TENSORS).write_bytes(before[:-1])
    assert command("--preset", "tiny", "--work", work, "--weights", kept) == 1
    assert f"'{ABOUT}' was written for" in capsys.readouterr().err
    (kept / ABOUT).write_text("{")
    assert command("--preset", "tiny", "--work", work, "--weights", kept) == 1
    assert ABOUT in capsys.readouterr().err
    assert not (work / LANGUAGE).exists()


@pytest.mark.skipif(not (WEIGHTS / LANGUAGE).is_dir(), reason="the tree holds no trained language half")
@pytest.mark.skipif(not is_installed(WHISPER_TINY_EN), reason="its encoder is Whisper's, of a package")
def test_the_trees_own_fits_its_preset(tmp_path: Path) -> None:
    assert command("--preset", "pocket", "--work", tmp_path) == 0
    assert load(tmp_path / LANGUAGE).config.backbone.hidden_size == POCKET.text.hidden
