"""A checkpoint that was trained here, exported: the device's greedy replies are the training form's."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

import edge_sdk
from edge_sdk.audio import load_audio
from edge_sdk.errors import Error
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from edge_sdk.mel import log_mel
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, Clip, Message, Template
from edge_sdk.tokenizer import Tokenizer
from samples.nano.model.batch import Sequence, collate
from samples.nano.model.checkpoint import Loaded, load, save
from samples.nano.model.fresh import write_fresh
from samples.nano.model.greedy import answer
from samples.nano.settings import TINY
from samples.nano.stages.loss import cross_entropy
from tests import speech_goldens as goldens
from tests import tolerances

QUESTION = goldens.recording("syn1p3")
STEPS = 24
GREEDY = edge_sdk.GenerationConfig(do_sample=False, repetition_penalty=1.0, max_new_tokens=STEPS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_text_tokenizer(folder, TINY.language_spec())
    return folder


@pytest.fixture(scope="module")
def trained(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh, and a few steps later: on what a question with sound might be answered, with seeded codes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    write_fresh(folder / "fresh", TINY, tokenizer, whisper=None, seed=3)
    loaded = load(folder / "fresh")
    random, ids = np.random.default_rng(1), loaded.config.text_ids
    text = np.concatenate([[ids.audio_bos], random.integers(256, 400, 9), [ids.audio_eos, 300, ids.eos[0]]])
    groups = random.integers(0, 81, (len(text), loaded.config.group_size))
    groups[10] = loaded.config.speech_ids.eos
    batch = collate([heard(loaded, text.astype(np.int64), groups)], loaded.config)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=3e-3)
    first = cross_entropy(loaded.model, batch)[0].item()
    for _ in range(12):
        optimizer.zero_grad()
        loss, _ = cross_entropy(loaded.model, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    save(loaded, folder / "trained")
    return folder / "trained"


def heard(loaded: Loaded, text: np.ndarray, groups: np.ndarray | None, *, words: str = "") -> Sequence:
    """The question as the SDK renders it, with a reply."""
    model, folder = loaded.config, loaded.folder
    template = Template(
        (folder / "chat_template.jinja").read_text(), Tokenizer((folder / "tokenizer.json").read_text()), model
    )
    if words:
        said: tuple[object, ...] = ((words, False),)
        mels: tuple[np.ndarray, ...] = ()
    else:
        pcm = load_audio(QUESTION)
        mels = (log_mel(pcm, model.mel),)
        said = (Clip.of(np.zeros((model.placeholder_count(len(pcm)), 1), np.float32), 0.0),)
    system = SYSTEM_TEXT if groups is None else SYSTEM_SPEECH
    prompt = template.render([Message("system", ((system, True),)), Message("user", said)])  # type: ignore[arg-type]
    count = int((prompt.ids == model.text_ids.audio).sum())
    return Sequence(prompt.ids, text, groups, mels, (count,) if mels else ())


def test_the_device_says_what_the_training_form_says(trained: Path, tmp_path: Path) -> None:
    loaded = load(trained)
    bundle = export_bundle(trained, None, tmp_path / "bundle", ExportOptions())
    prompt = heard(loaded, np.zeros(1, np.int64), np.zeros((1, 5), np.int64))
    text, groups, returned = answer(loaded.model, prompt, steps=STEPS, first=(loaded.config.text_ids.audio_bos,))
    with edge_sdk.Chat(bundle, generation=GREEDY) as chat:
        reply = chat.send(audio=QUESTION)
    assert reply.text_ids == tuple(text)
    ended = (groups == loaded.config.speech_ids.eos).any(axis=1)
    spoken = np.where(ended[:, None], loaded.config.speech_ids.eos, groups)[returned]
    assert returned.any()
    assert list(reply.speech_ids) == spoken.reshape(-1).tolist()
    assert len(set(reply.text_ids)) > 3  # it was trained: not one id over and over


def test_replies_in_text_alone(trained: Path, tmp_path: Path) -> None:
    loaded = load(trained)
    bundle = export_bundle(trained, None, tmp_path / "bundle", ExportOptions())
    words = "the answer is"
    prompt = heard(loaded, np.zeros(1, np.int64), None, words=words)
    text, _, _ = answer(loaded.model, prompt, steps=STEPS, speech=False)
    with edge_sdk.Chat(bundle, speech=False, generation=GREEDY) as chat:
        assert chat.send(text=words).text_ids == tuple(text)


def test_a_fresh_model_says_nothing_yet(tokenizer: Path, tmp_path: Path) -> None:
    """Its scores are near to even, so nothing has to be unlearned; one seed gives one checkpoint, another another."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_fresh(tmp_path / name, TINY, tokenizer, whisper=None, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    loaded = load(tmp_path / "a")
    text = np.array([loaded.config.text_ids.audio_bos, 300, 301], np.int64)
    _, numbers = cross_entropy(loaded.model, collate([heard(loaded, text, np.zeros((3, 5)))], loaded.config))
    assert abs(numbers["text"] - np.log(loaded.config.text_ids.vocab_size)) < tolerances.FRESH_NATS
    assert abs(numbers["speech"] - np.log(loaded.config.speech_ids.codebook_size)) < tolerances.FRESH_NATS


def test_a_tokenizer_of_another_family(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"lacks tokenizer.json, chat_template.jinja"):
        write_fresh(tmp_path / "a", TINY, tmp_path, whisper=None, seed=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "chat_template.jinja").write_text("")
    (other / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text().replace("<|sil|>", "<|quiet|>"))
    with pytest.raises(Error, match=r"the added tokens <\|sil\|> do not follow"):
        write_fresh(tmp_path / "a", TINY, other, whisper=None, seed=1)
    assert not (tmp_path / "a").exists()
