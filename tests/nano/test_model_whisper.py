"""Whisper tiny.en's encoder in our modules, against CTranslate2 running the package's own file."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

from edge_sdk.audio import load_audio
from edge_sdk.config import EncoderConfig, MelConfig
from edge_sdk.errors import Error
from edge_sdk.mel import log_mel
from samples.nano.model.encoder import Encoder, sinusoids
from samples.nano.model.whisper import load_into, read_tensors
from samples.nano.settings import NANO
from samples.nano.voices.packages import WHISPER_TINY_EN, is_installed, model_file
from tests import speech_goldens as goldens
from tests import tolerances

SPEC = NANO.encoder
CONFIG = EncoderConfig(SPEC.d_model, SPEC.layers, SPEC.heads, SPEC.ffn, SPEC.n_mels, SPEC.n_window)
MEL = MelConfig(n_mels=SPEC.n_mels, n_fft=400, hop_samples=160, sample_rate=16000, max_samples=480000)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    if not is_installed(WHISPER_TINY_EN):
        pytest.skip(f"{WHISPER_TINY_EN[0]} is not installed")
    return read_tensors(model_file(WHISPER_TINY_EN))


@pytest.fixture(scope="module")
def encoder(tensors: dict[str, Any]) -> Encoder:
    torch.set_num_threads(1)
    made = Encoder(CONFIG, NANO.text.hidden)
    load_into(made, tensors)
    return made


def test_the_position_table_is_whispers(tensors: dict[str, Any]) -> None:
    table = tensors["encoder/position_encodings/encodings"].astype(np.float32)
    ours = sinusoids(len(table), SPEC.d_model).numpy()
    assert np.abs(ours - table).max() <= np.finfo(np.float16).eps  # theirs is rounded to float16
    assert np.array_equal(ours.astype(np.float16)[: SPEC.n_window], table.astype(np.float16)[: SPEC.n_window])


@pytest.mark.parametrize("frames", [200, 130])
def test_one_window_is_what_whisper_makes_of_it(
    encoder: Encoder, tensors: dict[str, Any], frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip no longer than our window is the same computation in both: zeros past its ends, positions from 0, full
    attention. Longer clips differ on purpose: ours attends inside windows. The table of positions is theirs here, whose
    rounding to float16 alone would make 6e-4 of the difference."""
    table = torch.from_numpy(tensors["encoder/position_encodings/encodings"].astype(np.float32))
    monkeypatch.setattr("samples.nano.model.encoder.sinusoids", lambda length, width: table[:length, :width])
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 runs the truth of this test")
    mel = log_mel(load_audio(goldens.recording("ck7vv9ag")), MEL)[:, 100 : 100 + frames]
    model = ctranslate2.models.Whisper(
        str(model_file(WHISPER_TINY_EN).parent), device="cpu", compute_type="float32", intra_threads=1
    )
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None], np.float32))
    expected = np.array(model.encode(view))[0]
    padded = np.zeros((1, SPEC.n_mels, CONFIG.window_frames), np.float32)
    padded[0, :, :frames] = mel
    with torch.no_grad():
        rows = encoder.rows(torch.from_numpy(padded), torch.tensor([frames]))[0, : (frames + 1) // 2]
        found = encoder.ln_post(rows).numpy()
    assert tolerances.relative(found, expected) < tolerances.WHISPER_RELATIVE


def test_another_size_is_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(Error, match=r"conv1.weight \[384, 80, 3\] for \[384, 128, 3\]"):
        load_into(Encoder(EncoderConfig(384, 4, 6, 1536, 128, 100), 320), tensors)
    with pytest.raises(Error, match="it has more layers"):
        load_into(Encoder(EncoderConfig(384, 3, 6, 1536, 80, 100), 320), tensors)
    with pytest.raises(Error, match="fewer layers"):
        load_into(Encoder(EncoderConfig(384, 5, 6, 1536, 80, 100), 320), tensors)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\6\0\0\0\x0c\0WhisperSpec\0\3\0\0\0\1\0\0\0\4\0abc\0\1")
    with pytest.raises(Error, match="not a whole CTranslate2 model"):
        read_tensors(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(b"\5\0\0\0\x0c\0WhisperSpec\0\3\0\0\0")
    with pytest.raises(Error, match="in version 5"):
        read_tensors(tmp_path / "model.bin")
