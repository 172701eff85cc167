"""Speaker embeddings from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import CheckpointError
from edge_sdk.export.vocoder import load_vocoder
from edge_sdk.export.voices import known_voices, pick_voice, read_voices, voice_file
from tests.vocoder import goldens

VALUES = np.linspace(-1, 1, 12).astype(np.float32)


@pytest.mark.parametrize("values", [VALUES, VALUES[None], VALUES.astype(np.float64)])
def test_npy(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "anna.npy", values)
    found = read_voices(tmp_path / "anna.npy")
    assert list(found) == ["anna"] and found["anna"].dtype == np.float32
    np.testing.assert_array_equal(found["anna"], VALUES)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.zeros(12, np.float32), "all zero"),
        (np.full(12, np.nan, np.float32), "NaN"),
        (np.full(12, 1e300), "infinite"),
        (np.ones((2, 12), np.float32), "[2, 12]"),
        (np.ones(12, np.int64), "int64[12]"),
        (np.empty(0, np.float32), "float32[0]"),
        (np.array([object()]), "cannot read"),
    ],
)
def test_npy_that_is_no_voice(tmp_path: Path, values: np.ndarray[Any, Any], named: str) -> None:
    np.save(tmp_path / "anna.npy", values)
    with pytest.raises(CheckpointError, match="anna"), np.errstate(over="ignore"):
        try:
            read_voices(tmp_path / "anna.npy")
        except CheckpointError as e:
            assert named in str(e)
            raise


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    for name in ("a.npy", "a.wav", "nothing.npy"):
        with pytest.raises(CheckpointError, match=name):
            read_voices(tmp_path / name)


def test_torch_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(VALUES)
    torch.save(tensor[None], tmp_path / "one.pt")
    np.testing.assert_array_equal(read_voices(tmp_path / "one.pt")["one"], VALUES)
    table = {"中文女": {"embedding": tensor[None], "speech_token": torch.zeros(3)}, "中文男": {"embedding": -tensor}}
    torch.save(table, tmp_path / "spk2info.pt")
    found = read_voices(tmp_path / "spk2info.pt")
    np.testing.assert_array_equal(found["中文男"], -VALUES)
    np.testing.assert_array_equal(pick_voice(tmp_path / "spk2info.pt", "中文女", 12), VALUES)
    np.testing.assert_array_equal(pick_voice(tmp_path / "one.pt", "any name", 12), VALUES)
    with pytest.raises(CheckpointError, match=r"中文女, 中文男|中文男, 中文女"):
        pick_voice(tmp_path / "spk2info.pt", "anna", 12)


def test_torch_files_that_are_no_voices(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for i, value in enumerate(
        ({}, {"a": torch.zeros(3)}, {"a": {"mel": 1}}, {"a": {"embedding": [1.0]}}, torch.ones(3).int())
    ):
        torch.save(value, tmp_path / f"{i}.pt")
        with pytest.raises(CheckpointError, match=rf"{i}\.pt|embedding"):
            read_voices(tmp_path / f"{i}.pt")


def test_wrong_size_is_named() -> None:
    with pytest.raises(CheckpointError, match="has 192 values, the vocoder asks for 12"):
        pick_voice(goldens.VOICE, "zh_female", 12)


def test_names_become_files() -> None:
    assert voice_file("zh_female") == "voices/zh_female.npy"
    assert voice_file("中文女") == "voices/中文女.npy"
    for name in ("", "../x", "a/b", ".hidden", "a b"):
        with pytest.raises(CheckpointError, match="file name"):
            voice_file(name)


def test_first_voice_is_the_default() -> None:
    part = load_vocoder(goldens.TINY, {"b": goldens.VOICE, "a": goldens.VOICE}, 100)
    assert part.config.default_voice == "b"
    assert part.config.voices == {name: f"voices/{name}.npy" for name in ("b", "a", "zh_female")}
    assert load_vocoder(goldens.TINY, {}, 100).config.default_voice == "zh_female"


def test_voices_that_need_not_be_named(tmp_path: Path) -> None:
    """Those in the vocoder's own folder come first, then upstream's, where it fits."""
    (tmp_path / "voices").mkdir()
    np.save(tmp_path / "voices" / "anna.npy", VALUES)
    assert list(known_voices(tmp_path, 192)) == ["anna", "zh_female"]
    assert list(known_voices(tmp_path, 12)) == ["anna"]
    np.testing.assert_array_equal(
        read_voices(known_voices(tmp_path, 192)["zh_female"])["zh_female"], np.load(goldens.VOICE)
    )


def test_an_entry_of_a_table_under_another_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(
        {"one": {"embedding": torch.tensor(VALUES)}, "two": {"embedding": torch.tensor(2 * VALUES)}}, tmp_path / "t.pt"
    )
    np.testing.assert_array_equal(pick_voice(f"{tmp_path}/t.pt:two", "mine", 12), 2 * VALUES)
    with pytest.raises(CheckpointError, match="it has one, two"):
        pick_voice(f"{tmp_path}/t.pt:three", "mine", 12)
