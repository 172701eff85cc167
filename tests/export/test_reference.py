"""The plain NumPy reference against the recordings of upstream, and the mixture of experts against its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.audio import load_audio
from edge_sdk.config import MoEConfig, TransformerConfig
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.reference.language import LanguageReference, gelu
from edge_sdk.mel import log_mel
from tests import speech_goldens as goldens
from tests import tolerances

CASES = [name for name in goldens.greedy_cases() if goldens.speaks(name)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(goldens.CHECKPOINT)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> LanguageReference:
    return LanguageReference(read_language_config(checkpoint).model, checkpoint.read)


def close(found: Any, expected: Any) -> None:
    assert tolerances.relative(found, expected) < tolerances.ROWS_RELATIVE


@pytest.mark.parametrize("clip", goldens.clips())
def test_the_encoder(reference: LanguageReference, clip: str) -> None:
    expected = goldens.arrays(f"audio_{clip}")
    pcm = load_audio(goldens.recording(clip))
    mel = log_mel(pcm, reference.model.mel, "upstream")
    found = reference.encode(mel, goldens.index()["audio"][clip]["placeholders"])
    assert found["grouped"].dtype == reference.dtype
    for name in expected.files:
        close(found[name], expected[name])
    zero = goldens.index()["audio"][clip]["zero_groups"]
    assert not found["grouped"][len(found["grouped"]) - zero :].any()


def rows_of(reference: LanguageReference, name: str) -> tuple[Any, Any]:
    """Rows that entered the backbone over prompt and reply, and their plain text embeddings."""
    case, golden = goldens.case(name), goldens.arrays(name)
    model = reference.model
    ids = np.concatenate([golden["input_ids"], golden["text_tokens"][:-1]])
    embedded = reference.embed_text(ids)
    rows = embedded.copy()
    audio = [goldens.arrays(f"audio_{clip}")["grouped"] for clip in case["audio"]]
    if audio:
        rows[ids == model.text_ids.audio] = np.concatenate(audio)
    rows[len(golden["input_ids"]) :] = golden["step_inputs_embeds"]
    return rows, embedded


def test_in_double_precision(checkpoint: Checkpoint, reference: LanguageReference) -> None:
    """How much of the distance to the recordings is rounding: the reference in float64 is as near as in float32."""
    wide = LanguageReference(reference.model, checkpoint.read, dtype=np.float64)
    rows, embedded = rows_of(reference, "s2s_syn1p3")
    hidden = wide.backbone(rows)
    assert hidden.dtype == np.float64
    close(hidden[: len(hidden) - 39], goldens.arrays("s2s_syn1p3")["prefill_hidden"])
    close(wide.speech_positions(hidden + embedded), reference.speech_positions(reference.backbone(rows) + embedded))


@pytest.mark.parametrize("name", goldens.greedy_cases())
def test_the_backbone(reference: LanguageReference, name: str) -> None:
    """Prompt and reply in one pass without a cache: every hidden state, and the scores."""
    golden = goldens.arrays(name)
    rows, _ = rows_of(reference, name)
    hidden = reference.backbone(rows)
    prompt = len(golden["input_ids"])
    close(hidden[:prompt], golden["prefill_hidden"])
    close(hidden[prompt - 1 :], golden["step_hidden"])
    logits = reference.text_logits(hidden[prompt - 1 :])
    assert np.abs(logits[0] - golden["prefill_text_logits"]).max() < tolerances.TEXT_LOGITS_ABS
    best = np.take_along_axis(logits, golden["text_top5_ids"].astype(np.int64), axis=1)
    assert np.abs(best - golden["text_top5_logits"]).max() < tolerances.TEXT_LOGITS_ABS
    assert logits.argmax(axis=1).tolist() == golden["text_top5_ids"][:, 0].tolist()


@pytest.mark.parametrize("name", CASES)
def test_groups_of_speech_tokens(reference: LanguageReference, name: str) -> None:
    golden = goldens.arrays(name)
    rows, embedded = rows_of(reference, name)
    begin, groups = len(golden["input_ids"]) - 1, golden["raw_groups"]
    for step, expected in zip(golden["group_embed_step"], golden["group_embed"], strict=True):
        grouped = reference.group_speech(groups[step - 1][None].astype(np.int64))[0]
        close(grouped, expected)
        close((grouped + embedded[begin + step]) / 2, rows[begin + step])


@pytest.mark.parametrize("name", CASES)
def test_the_speech_head(reference: LanguageReference, name: str) -> None:
    """Every pick of a reply in one pass: BOS on the prompt's rows up to the first pick, then the pick before."""
    golden, size = goldens.arrays(name), reference.model.group_size
    rows, embedded = rows_of(reference, name)
    hidden = reference.backbone(rows)
    picks = golden["raw_groups"].reshape(-1)
    bos = np.full((len(golden["input_ids"]) - 1) * size + 1, reference.model.speech_ids.bos)
    previous = np.concatenate([bos, picks[:-1]]).astype(np.int64)
    inputs = reference.speech_inputs(reference.speech_positions(hidden + embedded), previous)
    outputs = reference.speech_hidden(inputs)
    if "crq_prefill_in" in golden.files:
        count = len(golden["crq_prefill_in"])
        close(inputs[:count], golden["crq_prefill_in"])
        close(outputs[:count], golden["crq_prefill_out"])
    logits = reference.speech_logits(outputs[len(outputs) - len(picks) :])
    if "crq_prefill_logits" in golden.files:
        assert np.abs(logits[:size] - golden["crq_prefill_logits"]).max() < tolerances.SPEECH_LOGITS_ABS
    ids, values = (golden[f"crq_top5_{kind}"].reshape(-1, 5) for kind in ("ids", "logits"))
    assert (
        np.abs(np.take_along_axis(logits, ids.astype(np.int64), axis=1) - values).max() < tolerances.SPEECH_LOGITS_ABS
    )
    assert logits.argmax(axis=1).tolist() == ids[:, 0].tolist()


def test_the_exact_gelu() -> None:
    x = np.linspace(-6, 6, 101)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_array_max_ulp(gelu(x)[40:], np.array(exact)[40:], 8)
    assert gelu(x.astype(np.float32)).dtype == np.float32


# -- experts


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_experts_are_the_weighted_sum_of_the_best(
    experts: int, active: int, normalize: bool, rows: int, seed: int
) -> None:
    """Written out for one row at a time: softmax over all, the k largest, renormalised if the config says so."""
    active = min(active, experts)
    rng = np.random.default_rng(seed)
    hidden, inner = 6, 4
    weights = {"p.mlp.gate.weight": rng.standard_normal((experts, hidden))}
    for e in range(experts):
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            weights[f"p.mlp.experts.{e}.{name}_proj.weight"] = rng.standard_normal(shape)
    moe = MoEConfig(experts, active, inner, normalize, (0,))
    stack = TransformerConfig(hidden, 1, 1, 1, 2, 8, 1e-6, 1e4, moe)
    model: Any = None
    reference = LanguageReference(model, weights.__getitem__, dtype=np.float64)
    x = rng.standard_normal((rows, hidden))
    found = reference._experts("p.mlp", stack, x)
    for row, out in zip(x, found, strict=True):
        scores = weights["p.mlp.gate.weight"] @ row
        shares = np.exp(scores) / np.exp(scores).sum()
        chosen = sorted(range(experts), key=lambda e: -shares[e])[:active]
        total = sum(shares[e] for e in chosen) if normalize else 1.0
        expected = np.zeros(hidden)
        for e in chosen:
            gate, up, down = (weights[f"p.mlp.experts.{e}.{n}_proj.weight"] for n in ("gate", "up", "down"))
            a = gate @ row
            expected += shares[e] / total * (down @ (a / (1 + np.exp(-a)) * (up @ row)))
        np.testing.assert_allclose(out, expected, rtol=tolerances.FLOAT64_RELATIVE, atol=tolerances.FLOAT64_RELATIVE)


def test_a_checkpoint_is_read_tensor_by_tensor(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Nothing is kept: a full-size checkpoint needs the memory of one tensor, not of all."""
    read: list[str] = []

    def counting(name: str) -> Any:
        read.append(name)
        return checkpoint.read(name)

    reference = LanguageReference(read_language_config(checkpoint).model, counting)
    rows = np.ones((3, reference.model.backbone.hidden_size), np.float32)
    reference.backbone(rows)
    first = list(read)
    read.clear()
    reference.backbone(rows)
    assert read == first
    assert len(set(first)) == len(first)
