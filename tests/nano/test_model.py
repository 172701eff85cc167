"""The PyTorch model in its training form against the recordings of upstream: one parallel pass over recorded ids."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

from edge_sdk.audio import load_audio
from edge_sdk.errors import Error
from edge_sdk.export.weights import CODEBOOK, ENCODER, HEAD
from edge_sdk.mel import log_mel
from samples.nano.model import layers
from samples.nano.model.batch import Batch, Sequence, activity, collate
from samples.nano.model.checkpoint import Loaded, load, save
from tests import speech_goldens as goldens
from tests import tiny, tolerances

SPEAKING = [name for name in goldens.greedy_cases() if goldens.speaks(name)]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load(goldens.CHECKPOINT)


def close(found: Any, expected: Any) -> None:
    assert tolerances.relative(found.detach().numpy(), expected) < tolerances.ROWS_RELATIVE


def sequence(loaded: Loaded, name: str) -> Sequence:
    golden, clips = goldens.arrays(name), goldens.case(name)["audio"]
    mels = [log_mel(load_audio(goldens.recording(c)), loaded.config.mel, "upstream") for c in clips]
    return Sequence(
        prompt_ids=golden["input_ids"].astype(np.int64),
        text_ids=golden["text_tokens"].astype(np.int64),
        groups=golden["raw_groups"].astype(np.int64) if goldens.speaks(name) else None,
        mels=tuple(mels),
        placeholders=tuple(goldens.index()["audio"][c]["placeholders"] for c in clips),
    )


@pytest.mark.parametrize("clip", goldens.clips())
def test_the_encoder(loaded: Loaded, clip: str) -> None:
    expected, entry = goldens.arrays(f"audio_{clip}"), goldens.index()["audio"][clip]
    mel = log_mel(load_audio(goldens.recording(clip)), loaded.config.mel, "upstream")
    prompt = np.full(entry["placeholders"], loaded.config.text_ids.audio)
    batch = collate([Sequence(prompt, prompt[:1], mels=(mel,), placeholders=(len(prompt),))], loaded.config)
    rows = loaded.model.audio_rows(batch)
    close(rows, expected["grouped"])
    assert not rows[len(rows) - entry["zero_groups"] :].any()
    if "pooled" in expected.files:
        close(loaded.model.pooled(batch)[: len(expected["pooled"])], expected["pooled"])


@pytest.mark.parametrize("name", goldens.greedy_cases())
def test_the_backbone(loaded: Loaded, name: str) -> None:
    golden = goldens.arrays(name)
    batch = collate([sequence(loaded, name)], loaded.config)
    rows, prompt = loaded.model.input_rows(batch)[0], len(golden["input_ids"])
    if goldens.speaks(name):
        close(rows[prompt:], golden["step_inputs_embeds"])
    hidden = loaded.model.hidden(batch)[0]
    close(hidden[:prompt], golden["prefill_hidden"])
    close(hidden[prompt - 1 :], golden["step_hidden"])
    logits = loaded.model.text_logits(hidden[prompt - 1 :]).detach().numpy()
    assert np.abs(logits[0] - golden["prefill_text_logits"]).max() < tolerances.TEXT_LOGITS_ABS
    best = np.take_along_axis(logits, golden["text_top5_ids"].astype(np.int64), axis=1)
    assert np.abs(best - golden["text_top5_logits"]).max() < tolerances.TEXT_LOGITS_ABS
    assert logits.argmax(axis=1).tolist() == golden["text_top5_ids"][:, 0].tolist()


@pytest.mark.slow  # half a minute of a C++ compiler
def test_compiled_layers_say_the_same(loaded: Loaded) -> None:
    """In every stack, at more than one length, and on the way back."""
    fused = load(goldens.CHECKPOINT).model
    fused.fuse()
    for name in SPEAKING[:2]:
        batch = collate([sequence(loaded, name)], loaded.config)
        found = [model.head_hidden(batch, model.hidden(batch)) for model in (fused, loaded.model)]
        close(found[0], found[1].detach().numpy())
        for rows, model in zip(found, (fused, loaded.model), strict=True):
            model.zero_grad()
            rows.square().mean().backward()
        for (weight, mine), theirs in zip(fused.named_parameters(), loaded.model.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), weight
            if mine.grad is not None and theirs.grad is not None and theirs.grad.any():
                assert tolerances.relative(mine.grad.numpy(), theirs.grad.numpy()) < tolerances.ROWS_RELATIVE, weight
    loaded.model.zero_grad()
    assert layers.compiled.cache_info().currsize >= 2, "the encoder's kind of layer, and the others'"


@pytest.mark.parametrize("name", SPEAKING)
def test_the_speech_head(loaded: Loaded, name: str) -> None:
    """Every pick of a reply from one pass."""
    golden, model = goldens.arrays(name), loaded.model
    batch = collate([sequence(loaded, name)], loaded.config)
    hidden = model.hidden(batch)
    rows, out = model.head_rows(batch, hidden)[0], model.head_hidden(batch, hidden)[0]
    if "crq_prefill_in" in golden.files:
        count = len(golden["crq_prefill_in"])
        close(rows[:count], golden["crq_prefill_in"])
        close(out[:count], golden["crq_prefill_out"])
    check_picks(golden, model.speech_logits(out).detach().numpy(), batch)


def check_picks(golden: Any, logits: Any, batch: Batch, row: int = 0) -> None:
    size, begin = golden["raw_groups"].shape[1], len(golden["input_ids"]) - 1
    picked = logits[begin * size : begin * size + golden["raw_groups"].size]
    ids, values = (golden[f"crq_top5_{kind}"].reshape(-1, 5) for kind in ("ids", "logits"))
    found = np.take_along_axis(picked, ids.astype(np.int64), axis=1)
    assert np.abs(found - values).max() < tolerances.SPEECH_LOGITS_ABS
    assert picked.argmax(axis=1).tolist() == ids[:, 0].tolist()
    targets = batch.speech_target[row][batch.speech_weight[row] > 0]
    assert targets.tolist() == golden["raw_groups"].reshape(-1).tolist()


@pytest.mark.parametrize("name", SPEAKING)
def test_when_speech_is_active(loaded: Loaded, name: str) -> None:
    golden = goldens.arrays(name)
    returned, fed = activity(golden["text_tokens"], golden["raw_groups"], loaded.config)
    assert returned.tolist() == golden["speech_active"].astype(bool).tolist()
    assert (np.flatnonzero(fed[:-1]) + 1).tolist() == golden["group_embed_step"].tolist()


def test_a_batch_computes_what_its_sequences_do(loaded: Loaded) -> None:
    """Padding changes nothing: other lengths, other clips, and one without speech in the same batch."""
    names = ["s2s_syn1p3", "s2t_syn1p3", "s2s_twoturn", "s2s_ck7vv9ag"]
    batch = collate([sequence(loaded, name) for name in names], loaded.config)
    hidden = loaded.model.hidden(batch)
    speech = loaded.model.speech_logits(loaded.model.head_hidden(batch, hidden)).detach().numpy()
    for row, name in enumerate(names):
        golden = goldens.arrays(name)
        prompt, steps = len(golden["input_ids"]), len(golden["text_tokens"])
        close(hidden[row, prompt - 1 : prompt - 1 + steps], golden["step_hidden"])
        if goldens.speaks(name):
            check_picks(golden, speech[row], batch, row)
        else:
            assert not batch.speech_weight[row].any()


def test_parts_that_do_not_fit(loaded: Loaded) -> None:
    good = sequence(loaded, "s2s_syn1p3")
    with pytest.raises(Error, match="7 audio placeholders, and 1 clips for 6"):
        collate([Sequence(good.prompt_ids, good.text_ids, good.groups, good.mels, (6,))], loaded.config)
    with pytest.raises(Error, match="40 text ids and groups of shape"):
        collate([Sequence(good.prompt_ids, good.text_ids, good.groups[:-1], good.mels, (7,))], loaded.config)


# -- checkpoints


@pytest.mark.parametrize(("dtype", "parts"), [("float32", 1 << 24), ("bfloat16", 3000), ("float16", 1 << 24)])
def test_round_trip(tmp_path: Path, dtype: str, parts: int) -> None:
    """Every tensor byte by byte, in one file or several, and every other file."""
    source = tiny.write(tmp_path / "a", dtype=dtype)
    save(load(source), tmp_path / "b", part_bytes=parts)
    stored: dict[str, Any] = {}
    for shard in (tmp_path / "b").glob("*.safetensors"):
        stored |= tiny.read_shard(shard)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 1 or parts == 3000
    assert stored == tiny.read_shard(source / "model.safetensors")
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert (tmp_path / "b" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_round_trip_of_tied_tables(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "a", tied=True)
    again = load(source)
    assert again.model.language_model.lm_head.weight is again.model.language_model.model.embed_tokens.weight
    save(again, tmp_path / "b")
    assert tiny.read_shard(tmp_path / "b" / "model.safetensors") == tiny.read_shard(source / "model.safetensors")


def test_a_table_that_is_stored_twice(tmp_path: Path) -> None:
    """A writer that keeps shared tensors stores the codebook as the head's table too: both follow the training.

    What the computation never reads stays as it was.
    """
    source = tiny.write(tmp_path / "a")
    tokens = tiny.zeros("F32", 2, tiny.SPEC.text.hidden)

    def store_more(tensors: dict[str, Any]) -> None:
        tensors[f"{HEAD}.lm_head.weight"] = tensors[CODEBOOK]
        tensors[f"{ENCODER}.audio_bos_eos_token.weight"] = tokens

    tiny.edit_tensors(source, store_more)
    again = load(source)
    with torch.no_grad():
        again.model.audio_tower.embed_tokens.weight.add_(1.0)
    save(again, tmp_path / "b")
    before, after = (tiny.read_shard(folder / "model.safetensors") for folder in (source, tmp_path / "b"))
    assert after[f"{HEAD}.lm_head.weight"] == after[CODEBOOK] != before[CODEBOOK]
    assert after[f"{ENCODER}.audio_bos_eos_token.weight"] == tokens
    assert set(after) == set(before)


def test_the_golden_checkpoint_round_trips(loaded: Loaded, tmp_path: Path) -> None:
    save(loaded, tmp_path / "again")
    expected = tiny.read_shard(goldens.CHECKPOINT / "model.safetensors")
    assert tiny.read_shard(tmp_path / "again" / "model.safetensors") == expected


def test_models_it_does_not_train(tmp_path: Path) -> None:
    with pytest.raises(Error, match="has no speech head"):
        load(tiny.write(tmp_path / "a", head=None))
    with pytest.raises(Error, match="says 'add'"):
        load(tiny.write(tmp_path / "b", features_mode="add"))
