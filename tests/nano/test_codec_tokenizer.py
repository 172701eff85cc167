"""The speech tokenizer: the code layout, the mel it hears, files, and that its loss can be learnt."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install -r samples/nano/requirements.txt")

from edge_sdk.errors import Error  # noqa: E402
from samples.nano.codec.griffin_lim import griffin_lim  # noqa: E402
from samples.nano.codec.mel import FLOOR, mel_filters, vocoder_mel  # noqa: E402
from samples.nano.codec.quantizer import Quantizer  # noqa: E402
from samples.nano.codec.tokenizer import SoundBatch, Tokenizer, certain, pitch_channels, tokenizer_loss  # noqa: E402
from samples.nano.settings import NANO, TINY, Sound  # noqa: E402
from tests import tolerances  # noqa: E402

torch.set_num_threads(1)  # tiny products: more threads only wait for each other

SOUND = Sound()
LEARNT = 0.7  # of the first loss, at most, after a handful of steps on one batch


def vowel(seconds: float, hz: float = 180.0, seed: int = 1) -> np.ndarray:
    """A buzz with formant-like weights and a little noise, float32."""
    t = np.arange(int(seconds * SOUND.output_rate_hz)) / SOUND.output_rate_hz
    harmonics = sum(np.sin(2 * np.pi * hz * h * t) / h for h in range(1, 20))
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.1 * harmonics * (1 + np.sin(4 * np.pi * t)) + 1e-3 * noise).astype(np.float32)


def test_codes_are_numbers_in_base_three() -> None:
    """The first scalar is the lowest digit, -1, 0, 1 are the digits 0, 1, 2: CosyVoice's layout."""
    quantizer = Quantizer(NANO.codec.levels)
    assert quantizer.codes == 3**8 == NANO.codec.codes
    z = torch.full((8,), -1.0)
    assert int(quantizer.encode(z)) == 0
    z[0], z[2] = 1.0, 0.0
    assert int(quantizer.encode(z)) == 2 * 3**0 + 1 * 3**2
    assert int(quantizer.encode(torch.ones(8))) == 3**8 - 1


@pytest.mark.parametrize("levels", [(3, 3, 3), (5, 3), (7, 5, 3)])
def test_every_code_is_its_own_point(levels: tuple[int, ...]) -> None:
    quantizer = Quantizer(levels)
    codes = torch.arange(quantizer.codes)
    points = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(points), codes)
    assert len({tuple(point) for point in points.tolist()}) == quantizer.codes
    grid = {tuple(n / (level // 2) for n, level in zip(at, levels, strict=True)) for at in _around_zero(levels)}
    assert {tuple(point) for point in points.double().round(decimals=4).tolist()} == {
        tuple(round(x, 4) for x in point) for point in grid
    }


def _around_zero(levels: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(-(level // 2), level // 2 + 1) for level in levels)))


def test_rounding_passes_the_gradient_of_tanh() -> None:
    quantizer = Quantizer((3, 3))
    z = torch.tensor([[0.4, -2.0]], requires_grad=True)
    quantized = quantizer.quantize(z)
    assert quantized.tolist() == [[0.0, -1.0]]
    quantized.sum().backward()
    torch.testing.assert_close(z.grad, 1 - torch.tanh(z.detach()) ** 2)


def test_levels_must_lie_around_zero() -> None:
    with pytest.raises(Error, match=r"odd numbers from 3 on, found \[3, 4\]"):
        Quantizer((3, 4))


def test_mel_is_the_textbook_one() -> None:
    """Against the same in NumPy, float64: mirrored edges, periodic Hann, magnitudes, Slaney's filters, natural log."""
    pcm = vowel(0.5)
    found = vocoder_mel(torch.from_numpy(pcm)[None], SOUND)[0].numpy()
    side, n = (SOUND.n_fft - SOUND.hop_samples) // 2, SOUND.n_fft
    padded = np.pad(pcm.astype(np.float64), side, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n)[:: SOUND.hop_samples]
    filters = mel_filters(SOUND.n_mels, n, SOUND.output_rate_hz).numpy().astype(np.float64)
    mel = np.log(np.maximum(np.abs(np.fft.rfft(frames * window)) @ filters.T, FLOOR)).T
    assert found.shape == (SOUND.n_mels, len(pcm) // SOUND.hop_samples)
    assert np.abs(found - mel).max() < tolerances.NANO_MEL_ABS


def test_pitch_channels() -> None:
    channels = pitch_channels(torch.tensor([[0.0, 200.0, 400.0]]))
    assert channels[0, 1].tolist() == [0, 1, 1]
    assert channels[0, 0].tolist() == [0, 0, pytest.approx(np.log(2), abs=tolerances.FOLD_RELATIVE)]
    assert certain(torch.tensor([[[0.5, 0.5], [-1.0, 2.0]]])).tolist() == [[[0.0, 0.5], [0.0, 1.0]]]


def test_codes_of_a_sound(tmp_path: Path) -> None:
    """25 a second, the last one filled up; the same from files; heard or told f0 both work, and matter."""
    torch.manual_seed(3)
    model = Tokenizer(TINY.codec, SOUND).eval()
    pcm = vowel(1.0)[:-100]
    codes = model.codes(pcm)
    assert codes.dtype == np.int64
    assert codes.shape == (SOUND.token_rate_hz,)
    assert codes.min() >= 0
    assert codes.max() < TINY.codec.codes
    model.save(tmp_path, TINY)
    again = Tokenizer.load(tmp_path, SOUND)
    np.testing.assert_array_equal(again.codes(pcm), codes)
    told = [again.codes(pcm, np.full(50, hz, np.float32)) for hz in (100.0, 400.0)]
    assert (told[0] != told[1]).any()
    assert again.codes(np.empty(0, np.float32)).shape == (0,)


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Error, match="there is no trained codec in"):
        Tokenizer.load(tmp_path, SOUND)
    Tokenizer(TINY.codec, SOUND).save(tmp_path, TINY)
    tensors = tmp_path / "codec.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(Error, match=r"is not the file that 'codec\.json' was written for"):
        Tokenizer.load(tmp_path, SOUND)
    tensors.write_bytes(whole)
    (tmp_path / "codec.json").write_text("[]")
    with pytest.raises(Error, match="does not describe a codec"):
        Tokenizer.load(tmp_path, SOUND)


def test_one_batch_is_learnt() -> None:
    torch.manual_seed(1)
    model = Tokenizer(TINY.codec, SOUND)
    pcm = torch.from_numpy(np.stack([vowel(0.6, hz, seed=int(hz)) for hz in (120.0, 150.0, 210.0, 300.0)]))
    mel = vocoder_mel(pcm, SOUND)
    f0 = torch.tensor([120.0, 150.0, 210.0, 300.0])[:, None].expand(-1, mel.shape[2]).clone()
    f0[:, ::7] = 0
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss, parts = tokenizer_loss(model, SoundBatch(mel, f0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < LEARNT * losses[0]
    assert set(parts) == {"mel", "pitch", "heard"}


def test_a_mel_can_be_heard_without_training() -> None:
    """Griffin-Lim's sound has the mel it was made of, more nearly than noise of the same level has."""
    pcm = torch.from_numpy(vowel(0.8))
    mel = vocoder_mel(pcm[None], SOUND)[0]
    made = griffin_lim(mel, SOUND)
    assert made.shape == pcm.shape
    noise = torch.randn(pcm.shape, generator=torch.Generator().manual_seed(1)) * pcm.std()
    errors = [(vocoder_mel(x[None], SOUND)[0] - mel)[:, 2:-2].abs().mean() for x in (made, noise)]
    assert errors[0] < tolerances.NANO_GRIFFIN_LIM_RATIO * errors[1]
    assert torch.equal(made, griffin_lim(mel, SOUND))
