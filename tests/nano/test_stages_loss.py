"""The losses against their definitions, and which weights each stage moves."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

from edge_sdk.errors import Error
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from samples.nano.model.checkpoint import Loaded, load
from samples.nano.model.fresh import write_fresh
from samples.nano.settings import TINY
from samples.nano.stages import cocktail1, cocktail2, dpo, prealign, text
from samples.nano.stages.data import Corpus, speech_batches, text_batches
from samples.nano.stages.examples import Prompter
from samples.nano.stages.layout import Layout
from samples.nano.stages.loss import cross_entropy, preference, score, text_cross_entropy
from samples.nano.stages.pairs import KINDS, preference_batches
from samples.nano.stages.stage import ALL, Stage, freeze, kept_of_encoder
from samples.nano.texts.dialogues import dialogues
from tests import tolerances
from tests.nano.sounds import SeededSounds


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer").mkdir()
    write_text_tokenizer(folder / "tokenizer", TINY.language_spec())
    write_fresh(folder / "fresh", TINY, folder / "tokenizer", whisper=None, seed=1)
    return load(folder / "fresh")


@pytest.fixture
def model(loaded: Loaded) -> Any:
    return copy.deepcopy(loaded.model)


@pytest.fixture(scope="module")
def corpus(loaded: Loaded) -> Corpus:
    """Of dialogues that offer no tools: their schemas are most of a prompt."""
    prompter = Prompter(loaded.folder, loaded.config)
    short = [d for d in dialogues(1, 300, "train") if not d.tools and len(d.turns) == 2]
    return Corpus(prompter, short, SeededSounds(TINY.codec.codes, codes=30), Layout())


def surprise(logits: Any, target: int) -> float:
    values = logits.double().tolist()
    largest = max(values)
    return largest + math.log(sum(math.exp(v - largest) for v in values)) - values[target]


def test_cross_entropy_by_its_definition(model: Any, corpus: Corpus) -> None:
    batch = speech_batches(corpus, 2, 1)(0)
    with torch.no_grad():
        loss, numbers = cross_entropy(model, batch, speech_share=0.5)
        hidden = model.hidden(batch)
        logits = model.text_logits(hidden), model.speech_logits(model.head_hidden(batch, hidden))
    means = []
    targets = (batch.text_target, batch.text_weight), (batch.speech_target, batch.speech_weight)
    for scores, (target, weight) in zip(logits, targets, strict=True):
        places = [tuple(place) for place in torch.nonzero(weight).tolist()]
        total = sum(float(weight[p]) * surprise(scores[p], int(target[p])) for p in places)
        means.append(total / float(weight.sum()))
    assert abs(numbers["text"] - means[0]) < tolerances.LOSS_ABS
    assert abs(numbers["speech"] - means[1]) < tolerances.LOSS_ABS
    assert abs(float(loss) - means[0] - 0.5 * means[1]) < tolerances.LOSS_ABS


def test_a_batch_without_speech_has_no_speech_loss(model: Any, corpus: Corpus) -> None:
    batch = text_batches(corpus, 2, 1, 0.0)(0)
    loss, numbers = cross_entropy(model, batch)
    assert loss == numbers["text"] == text_cross_entropy(model, batch)[0]
    assert numbers["speech"] == 0


def test_preference_begins_undecided_and_learns(model: Any, corpus: Corpus) -> None:
    """Against its own copy the margin is 0 and the loss log 2; trained, it prefers what was chosen."""
    reference, batch = copy.deepcopy(model), preference_batches(corpus, 2, 1, dict.fromkeys(KINDS, 1.0))(0)
    settings = {"beta": 0.1, "speech_share": 1.0, "sft_share": 0.0}
    loss, numbers = preference(model, batch, reference=reference, **settings)
    assert abs(loss.item() - math.log(2)) < tolerances.LOSS_ABS
    assert abs(numbers["margin"]) < tolerances.LOSS_ABS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(6):
        optimizer.zero_grad()
        loss, numbers = preference(model, batch, reference=reference, **settings)
        loss.backward()
        optimizer.step()
    assert numbers["preferred"] == 1.0
    assert loss.item() < math.log(2) / 2


def test_preference_by_its_definition(model: Any, corpus: Corpus) -> None:
    """From the log probabilities of both replies, under another model than the reference."""
    batch = preference_batches(corpus, 1, 2, dict.fromkeys(KINDS, 1.0))(0)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
        loss, _ = preference(model, batch, reference=reference, beta=0.2, speech_share=0.5, sft_share=0.25)
        sums = {}
        for name, m in (("mine", model), ("theirs", reference)):
            spoken = score(m, batch)
            for n, scores in enumerate(spoken):
                assert scores is not None
                for row in (0, 1):
                    own = scores.sequence == row
                    sums[name, n, row] = float((scores.log_probs[own] * scores.weights[own]).sum())
            if name == "mine":
                chosen = [float(s.log_probs[s.sequence == 0] @ s.weights[s.sequence == 0]) for s in spoken if s]
                counts = [float(s.weights[s.sequence == 0].sum()) for s in spoken if s]
    gains = [
        sum(share * (sums["mine", n, r] - sums["theirs", n, r]) for n, share in ((0, 1.0), (1, 0.5))) for r in (0, 1)
    ]
    expected = math.log1p(math.exp(-0.2 * (gains[0] - gains[1])))
    expected += 0.25 * (-chosen[0] / counts[0] - 0.5 * chosen[1] / counts[1])
    assert abs(float(loss) - expected) < tolerances.LOSS_ABS * max(1.0, expected)


@pytest.mark.parametrize("stage", [s.STAGE for s in (text, prealign, cocktail1, cocktail2, dpo)], ids=lambda s: s.name)
def test_what_a_stage_moves(model: Any, corpus: Corpus, stage: Stage) -> None:
    """One step: every weight the stage trains is moved, none of the others is."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze(model, stage.trains)
    make = text_batches(corpus, 3, 1, 0.3) if stage is text.STAGE else speech_batches(corpus, 3, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    cross_entropy(model, make(0))[0].backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(stage.trains), name


@pytest.mark.parametrize("encoder", ["keep", "last", "train"])
def test_whispers_encoder_can_stay(model: Any, corpus: Corpus, encoder: str) -> None:
    layers = model.config.encoder.num_layers
    freeze(model, ALL, kept_of_encoder(layers, argparse.Namespace(encoder=encoder)))
    cross_entropy(model, speech_batches(corpus, 2, 1)(0))[0].backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    tower = {name for name, _ in model.named_parameters() if name.startswith("continuous_audio_tower.")}
    behind = {"keep": ("proj.",), "last": (f"layers.{layers - 1}.", "ln_post.", "proj."), "train": ("",)}[encoder]
    assert tower - still == {n for n in tower if n.removeprefix("continuous_audio_tower.").startswith(behind)}
    assert still < tower


def test_freezing_all_is_refused(model: Any) -> None:
    with pytest.raises(Error, match="no weight of this model begins with nothing"):
        freeze(model, ("nothing.",))


def test_stages_follow_each_other() -> None:
    chain = (text, prealign, cocktail1)
    assert [s.STAGE.source for s in chain] == ["start", *(s.STAGE.name for s in chain[:-1])]
    assert dpo.STAGE.source == cocktail2.STAGE.name
    rates = {s.STAGE.name: s.STAGE.schedules["nano"].learning_rate for s in (cocktail1, cocktail2)}
    assert rates["cocktail2"] < rates["cocktail1"]


def test_the_sum_over_sequences(model: Any, corpus: Corpus) -> None:
    batch = speech_batches(corpus, 3, 1)(0)
    scores, _ = score(model, batch)
    rows = [(scores.log_probs * scores.weights)[scores.sequence == n].sum().item() for n in range(3)]
    np.testing.assert_allclose(scores.by_sequence(3).detach().numpy(), rows, rtol=tolerances.SUM_RELATIVE)


def test_settings_of_every_preset(tmp_path: Path) -> None:
    for stage in (text, prealign, cocktail1, cocktail2, dpo):
        assert set(stage.STAGE.schedules) == set(stage.STAGE.batch) == {"nano", "tiny"}


def test_half_precision_takes_the_same_way(model: Any, corpus: Corpus) -> None:
    """A GPU's run is under bfloat16 autocast: every type on the way fits, and the loss is the same but for rounding."""
    batch = speech_batches(corpus, 2, 1)(0)
    expected = cross_entropy(model, batch)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected) < tolerances.HALF_LOSS_RELATIVE * expected
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
