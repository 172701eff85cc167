"""The trained parts of the tree: what is taken is what was saved, in float16, and nothing else is written over."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")

from samples.nano import __main__ as commands
from samples.nano.codec.files import save_model
from samples.nano.codec.flow import Flow
from samples.nano.codec.sizes import vocoder_sizes
from samples.nano.codec.tokenizer import Tokenizer
from samples.nano.codec.waveform import Waveform
from samples.nano.codec.weights import WEIGHTS
from samples.nano.codec.write_vocoder import load_flow, load_waveform
from samples.nano.settings import POCKET, TINY


def command(*given: object) -> int:
    return commands.main(["weights", *map(str, given)])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    sizes = vocoder_sizes(TINY.vocoder_spec())
    Tokenizer(TINY.codec, TINY.sound).save(tmp_path / "w" / "codec", TINY)
    save_model(tmp_path / "w" / "flow", "flow", Flow(sizes), {"name": "tiny"})
    save_model(tmp_path / "w" / "waveform", "waveform", Waveform(sizes), {"name": "tiny"})
    return tmp_path / "w"


def test_there_and_back(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, other = tmp_path / "kept", tmp_path / "other"
    assert command("--preset", "tiny", "--work", trained, "--weights", kept, "--save") == 0
    assert command("--preset", "tiny", "--work", other, "--weights", kept) == 0
    for load in (load_flow, load_waveform):
        before, after = load(trained, TINY).state_dict(), load(other, TINY).state_dict()
        assert all(torch.equal(before[name].half().float(), after[name]) for name in before)
    pcm = torch.sin(torch.arange(24000) / 20).numpy()
    codes = [Tokenizer.load(folder / "codec", TINY.sound).codes(pcm) for folder in (trained, other)]
    assert len(codes[0]) == len(codes[1]) == 25
    capsys.readouterr()
    assert command("--preset", "tiny", "--work", other, "--weights", kept) == 1
    assert "remove it" in capsys.readouterr().err


def test_of_another_preset_or_damaged(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, other = tmp_path / "kept", tmp_path / "other"
    assert command("--preset", "tiny", "--work", trained, "--weights", kept, "--save") == 0
    assert command("--preset", "pocket", "--work", other, "--weights", kept) == 1
    assert "preset 'pocket'" in capsys.readouterr().err
    flow = kept / "flow.safetensors"
    flow.write_bytes(flow.read_bytes()[:-1] + b"\x7f")
    assert command("--preset", "tiny", "--work", other, "--weights", kept) == 1
    assert "flow" in capsys.readouterr().err and not other.exists()


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the tree holds no trained parts")
def test_the_trees_own_fit_their_preset(tmp_path: Path) -> None:
    assert command("--preset", "pocket", "--work", tmp_path) == 0
    assert load_flow(tmp_path, POCKET) is not None
