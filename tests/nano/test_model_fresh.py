"""What fresh weights are given: a head that copies after a few steps, words that begin alike in their forms, codes that
begin as the scalars they are."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")

from edge_sdk.config import TransformerConfig
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from samples.nano.codec.quantizer import Quantizer
from samples.nano.model import codetable, forms, induction, layers
from samples.nano.model.language import TextBackbone
from samples.nano.settings import TINY
from samples.nano.texts.train_tokenizer import read_tokenizer

BACKBONE = TransformerConfig(
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=128,
    rms_norm_eps=1e-6,
    rope_theta=1e5,
)
WORDS, LENGTH = 300, 12


class Text(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A backbone whose embedding is its text head, which is all that a copy needs."""

    def __init__(self, *, laid: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = TextBackbone(Config())  # type: ignore[arg-type]
        for p in self.model.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        if laid:
            induction.lay(self.model, BACKBONE, seed=1)

    def forward(self, ids: Any) -> Any:
        return self.model(self.model.embed_tokens(ids)) @ self.model.embed_tokens.weight.T


class Config:
    backbone = BACKBONE
    text_ids = type("TextIds", (), {"vocab_size": WORDS})


def twice(count: int, seed: int) -> Any:
    """Ids drawn at random, and the same again: int64 [count, 2 * LENGTH]."""
    torch.manual_seed(seed)
    ids = torch.randint(WORDS, (count, LENGTH))
    return torch.cat([ids, ids], dim=1)


def copied(model: Text, ids: Any) -> tuple[Any, float]:
    """(cross entropy, share right) of the second time's ids but the first."""
    logits, targets = model(ids)[:, LENGTH:-1], ids[:, LENGTH + 1 :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss, float((logits.argmax(-1) == targets).float().mean())


def learnt(*, laid: bool, steps: int = 60) -> float:
    model = Text(laid=laid)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        loss, _ = copied(model, twice(32, 100 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return copied(model.eval(), twice(64, 1))[1]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_it_looks_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 0's first head at the row before, whatever stands there."""
    seen: list[Any] = []
    attend = layers.attend

    def looked_at(q: Any, k: Any, v: Any, key_bias: Any) -> Any:
        length = q.shape[2]
        later = torch.full((length, length), float("-inf")).triu(1)
        seen.append((q @ k.transpose(-1, -2) * q.shape[3] ** -0.5 + later).softmax(dim=-1))
        return attend(q, k, v, key_bias)

    monkeypatch.setattr(layers, "attend", looked_at)
    found = {}
    for laid in (False, True):
        seen.clear()
        with torch.no_grad():
            Text(laid=laid)(twice(32, 5))
        found[laid] = float(torch.diagonal(seen[0][:, 0], -1, 1, 2)[:, 1:].mean())
    assert found[False] < 0.2 and found[True] > 0.75  # measured: 0.10 and 0.87


def test_it_copies_after_a_few_steps() -> None:
    drawn, laid = learnt(laid=False), learnt(laid=True)
    assert laid > 0.5 > 0.1 > drawn  # measured: 1.00 and 0.03


def test_where_there_is_no_room() -> None:
    assert induction.fits(BACKBONE)
    for other in ({"num_layers": 1}, {"num_kv_heads": 1, "num_heads": 4}, {"hidden_size": 16}):
        assert not induction.fits(dataclasses.replace(BACKBONE, **other))


def test_words_begin_alike(tmp_path: Path) -> None:
    """With and without the space before them, at the length they had; other words are left as they were drawn."""
    spec = TINY.language_spec()
    write_text_tokenizer(tmp_path, spec)
    tokenizer = read_tokenizer(tmp_path)
    found = forms.pairs(tokenizer, spec.text_tokens)
    assert (tokenizer.encode_plain("you")[0], tokenizer.encode_plain(" you")[0]) in found
    torch.manual_seed(1)
    drawn = torch.randn(spec.vocab_size, 64)
    rows = drawn.clone()
    forms.make_alike(rows, tmp_path, spec.text_tokens)
    plain, spaced = (torch.tensor(side) for side in zip(*found, strict=True))
    assert torch.cosine_similarity(rows[plain], rows[spaced]).min() > 0.5
    assert torch.allclose(rows.norm(dim=1), drawn.norm(dim=1))
    others = [i for i in range(spec.vocab_size) if i not in set(plain.tolist())]
    assert torch.equal(rows[others], drawn[others])


def test_codes_begin_as_the_scalars_they_are() -> None:
    """Codes that differ in one scalar by one level are nearer to each other than to others; each is still its own."""
    levels, width = (3, 5, 7), 64
    quantizer = Quantizer(levels)
    table = torch.zeros(quantizer.codes + 2, width)
    assert codetable.lay(table, levels, 0.5, seed=1)
    assert not table[quantizer.codes :].any() and abs(float(table[: quantizer.codes].std()) - 0.5) < 0.1
    scalars = quantizer.decode(torch.arange(quantizer.codes))
    # A least-squares map finds the scalars in the rows, as the head's first matrix can: more codes than its width.
    found = torch.linalg.lstsq(table[: quantizer.codes], scalars).solution
    assert (table[: quantizer.codes] @ found - scalars).abs().max() < 0.3
    apart = torch.cdist(table[: quantizer.codes], table[: quantizer.codes])
    moved = (scalars[:, None] - scalars[None]).abs()
    one = (moved > 0).sum(-1) == 1
    assert apart[one & (moved.sum(-1) <= 1)].mean() < 0.9 * apart[~one & (apart > 0)].mean()
    assert apart.fill_diagonal_(1.0).min() > 0
    narrow = torch.ones(quantizer.codes, 4)
    assert not codetable.lay(narrow, levels, 0.5, seed=1) and bool((narrow == 1).all())
