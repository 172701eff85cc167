"""What the vocoder learns from: batches told by seed and step, losses that one batch brings down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install -r samples/nano/requirements.txt")

from samples.nano.codec.crops import FULL_SCALE, Crops, Item, prepare  # noqa: E402
from samples.nano.codec.flow import Flow  # noqa: E402
from samples.nano.codec.flow_loss import FlowBatch, begin_near, flow_loss, sampled_loss, seen  # noqa: E402
from samples.nano.codec.mel import FLOOR  # noqa: E402
from samples.nano.codec.quantizer import Quantizer  # noqa: E402
from samples.nano.codec.sizes import vocoder_sizes  # noqa: E402
from samples.nano.codec.speech import TURN, Utterance  # noqa: E402
from samples.nano.codec.tokenizer import Tokenizer, tokenizer_loss  # noqa: E402
from samples.nano.codec.waveform import Snake, Waveform  # noqa: E402
from samples.nano.codec.waveform_loss import EARLY_SAMPLES, spectral_losses, waveform_loss  # noqa: E402
from samples.nano.codec.waveform_start import begin  # noqa: E402
from samples.nano.settings import TINY  # noqa: E402
from tests import tolerances  # noqa: E402

torch.set_num_threads(1)  # tiny products: more threads only wait for each other

SOUND, SIZES = TINY.sound, vocoder_sizes(TINY.vocoder_spec())
NONE, LOOKAHEAD = SIZES.flow.codebook_size, SIZES.flow.lookahead_tokens
QUANTIZER = Quantizer(TINY.codec.levels)
SCALARS = QUANTIZER.decode(torch.arange(QUANTIZER.codes))
LEARNT = 0.85  # of the first loss, at most, after a handful of steps on one batch


def utterance(seconds: float, hz: float) -> Utterance:
    """A buzz whose loudness moves."""
    samples = round(seconds * SOUND.token_rate_hz) * SOUND.frames_per_token * SOUND.hop_samples
    t = np.arange(samples) / SOUND.output_rate_hz
    pcm = sum(np.sin(2 * np.pi * hz * h * t) / h for h in range(1, 9)) * 0.1 * (1.1 + np.sin(6 * t))
    f0, curve = (np.full(frames, hz, np.float32) for frames in (samples // SOUND.hop_samples, samples // 300))
    return Utterance(f"{hz} Hz", "train", pcm.astype(np.float32), f0, curve)


def counted(u: Utterance) -> np.ndarray:
    """Codes that tell where they stand."""
    return np.arange(len(u.f0_hz) // SOUND.frames_per_token) % NONE


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return prepare([utterance(2.0, 230.0), utterance(0.4, 290.0)], SOUND, counted, with_turns=True)


def learn(model: torch.nn.Module, loss_of, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    losses = []
    for _ in range(steps):
        torch.manual_seed(1)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_pieces_fit_together(items: list[Item]) -> None:
    """Samples, frames and codes of a row are of the same time; a short utterance is followed by silence."""
    crops = Crops(items, SOUND, rows=8, frames=41, seed=5)
    assert crops.frames == 40
    batch = crops.flow(3, NONE, LOOKAHEAD, np.ones(SIZES.flow.speaker_dim, np.float32))
    wave = crops.wave(3)
    assert batch.codes.shape == (8, 20 + LOOKAHEAD)
    assert batch.mel.shape == (8, 40, SOUND.n_mels)
    assert wave.pcm.shape == (8, 40 * SOUND.hop_samples)
    picked = crops.picked(3)
    assert {len(item.f0_hz) for item, _ in picked} == {100, 20}
    assert [start for row, (_, start) in enumerate(picked) if row % 4 == 0] == [0, 0]
    for row, (item, start) in enumerate(picked):
        assert start % SOUND.frames_per_token == 0
        frames = min(40, item.mel.shape[1] - start)
        assert batch.valid[row].sum() == frames
        assert batch.codes[row, 0] == start // SOUND.frames_per_token % NONE
        tokens = frames // SOUND.frames_per_token
        ahead = min(LOOKAHEAD, len(item.codes) - start // SOUND.frames_per_token - tokens)
        assert (batch.codes[row, tokens + ahead :] == NONE).all()
        np.testing.assert_array_equal(batch.mel[row, :frames].numpy(), item.mel[:, start : start + frames].T)
        assert (batch.mel[row, frames:] == math.log(np.float32(FLOOR))).all()
        begin = start * SOUND.hop_samples
        expected = item.pcm[begin : begin + frames * SOUND.hop_samples].astype(np.float32) / FULL_SCALE
        np.testing.assert_array_equal(wave.pcm[row, : frames * SOUND.hop_samples].numpy(), expected)
        assert not wave.pcm[row, frames * SOUND.hop_samples :].any()


def test_a_step_tells_its_batch(items: list[Item]) -> None:
    batches = [Crops(items, SOUND, 4, 20, seed).wave(step).pcm for seed, step in ((5, 3), (5, 3), (5, 4), (6, 3))]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[3])


def test_which_frames_see_which() -> None:
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    rows = [["".join(".x"[int(v)] for v in row) for row in mask[0].tolist()] for mask in seen(valid, 2)]
    assert rows == [["xx...", "xx...", "xxxx.", "xxxx.", "xxxxx"], ["xx...", "xx...", "xxx..", "xxx..", "xxx.."]]
    assert seen(valid, None)[0].all()


def test_filling_has_no_effect_on_the_flows_loss(items: list[Item]) -> None:
    """Frames behind the end of a short utterance neither count nor are seen."""
    torch.manual_seed(4)
    flow = Flow(SIZES)
    for block in flow.decoder["estimator"].transformer_blocks:
        torch.nn.init.normal_(block.attn_norm.linear.weight, std=0.2)
    torch.nn.init.normal_(flow.decoder["estimator"].proj_out.weight, std=0.2)
    batch = flow_batch(items)
    other = FlowBatch(batch.codes, torch.where(batch.valid[..., None], batch.mel, 5.0), batch.valid, batch.speaker)
    assert not batch.valid.all()
    losses = [seeded_loss(flow, b) for b in (batch, other)]
    assert losses[0] == losses[1]
    everywhere = FlowBatch(batch.codes, other.mel, torch.ones_like(batch.valid), batch.speaker)
    assert seeded_loss(flow, everywhere) != losses[0]


def seeded_loss(flow: Flow, batch: FlowBatch) -> float:
    torch.manual_seed(2)
    return float(flow_loss(flow, batch).detach())


def flow_batch(items: list[Item]) -> FlowBatch:
    return Crops(items, SOUND, 8, 60, 1).flow(0, NONE, LOOKAHEAD, np.ones(SIZES.flow.speaker_dim, np.float32))


@pytest.mark.parametrize("loss", [flow_loss, sampled_loss])
def test_the_flow_learns_one_batch(items: list[Item], loss: Callable[[Flow, FlowBatch], torch.Tensor]) -> None:
    torch.manual_seed(1)
    flow, batch = Flow(SIZES), flow_batch(items)
    begin_near(flow, torch.from_numpy(np.concatenate([item.mel for item in items], axis=1).T), SCALARS)
    losses = learn(flow, lambda: loss(flow, batch), 20, 3e-3)
    assert losses[-1] < LEARNT * losses[0]


def test_what_is_filling_does_not_count(items: list[Item]) -> None:
    torch.manual_seed(1)
    flow, batch = Flow(SIZES), flow_batch(items)
    for loss in (flow_loss, sampled_loss):
        found = []
        for filling in (0.0, 50.0):
            mel = batch.mel.where(batch.valid[..., None], torch.tensor(filling))
            torch.manual_seed(3)
            found.append(float(loss(flow, dataclasses.replace(batch, mel=mel)).detach()))
        assert found[0] == pytest.approx(found[1])


def test_the_waveform_part_learns_one_batch(items: list[Item]) -> None:
    torch.manual_seed(1)
    model, batch = begin(Waveform(SIZES)), Crops(items, SOUND, 2, 16, 1).wave(0)
    parts = []

    def loss_of() -> torch.Tensor:
        loss, found = waveform_loss(model, batch, SOUND)
        parts.append({name: float(value.detach()) for name, value in found.items()})
        return loss

    losses = learn(model, loss_of, 20, 1e-3)
    assert min(losses[-5:]) < LEARNT * losses[0]
    for name in ("spectral", "phase", "f0_hz"):
        assert min(part[name] for part in parts[-5:]) < LEARNT * parts[0][name], name


def test_the_excitation_has_the_sounds_phase(items: list[Item]) -> None:
    """EARLY_SAMPLES later it runs along with the buzz; from its own beginning on it is the device's, noise aside."""
    batch = Crops(items[:1], SOUND, 1, 16, 1).wave(0)
    model = begin(Waveform(SIZES))
    nothing = torch.zeros(*batch.pcm.shape, SIZES.waveform.harmonics + 1)
    with torch.no_grad():
        source = model.aligned_source(batch.turns, batch.f0_hz, nothing)[0]
        assert torch.corrcoef(torch.stack([source[:-EARLY_SAMPLES], batch.pcm[0, EARLY_SAMPLES:]]))[0, 1] > 0.9
        turns = torch.from_numpy(items[0].turns[None, : batch.pcm.shape[1]] / np.float32(TURN))
        begun = model.aligned_source(turns, batch.f0_hz, nothing)
        assert float((begun - model.source(batch.f0_hz, nothing)).abs().max()) < tolerances.TURNS_SOURCE_ABS


def test_snakes_gradient(items: list[Item]) -> None:
    snake = Snake(3).double()
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: snake(x), (x, snake.alpha))
    assert torch.allclose(snake(x), x + torch.sin(snake.alpha[:, None] * x) ** 2 / snake.alpha[:, None])


def test_a_sound_is_nearest_to_itself(items: list[Item]) -> None:
    pcm = Crops(items, SOUND, 2, 16, 1).wave(0).pcm
    assert spectral_losses(pcm, pcm, SOUND)[0] == 0
    assert all(part > 0 for part in spectral_losses(0.5 * pcm, pcm, SOUND))


def test_losses_under_autocast(items: list[Item]) -> None:
    """On a GPU the trainer computes in bfloat16 where it can: losses are float32 still, and near the exact."""
    torch.manual_seed(1)
    crops = Crops(items, SOUND, 2, 20, 1)
    tokenizer, flow, waveform = Tokenizer(TINY.codec, SOUND), Flow(SIZES), begin(Waveform(SIZES))
    voice = np.ones(SIZES.flow.speaker_dim, np.float32)
    losses = (
        lambda: tokenizer_loss(tokenizer, crops.sound_of(0))[0],
        lambda: flow_loss(flow, crops.flow(0, NONE, LOOKAHEAD, voice)),
        lambda: waveform_loss(waveform, crops.wave(0), SOUND)[0],
    )
    for loss in losses:
        found = []
        for enabled in (False, True):
            torch.manual_seed(2)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(loss())
        assert found[1].dtype == torch.float32
        found[1].backward()
        assert abs(float((found[1] / found[0]).detach()) - 1) < tolerances.NANO_BFLOAT16_RELATIVE
