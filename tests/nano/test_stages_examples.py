"""Replies on the 5 Hz grid: what is trained is what the device's own loop would make, prompt and reply."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

import edge_sdk
from edge_sdk import reply as reply_module
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from edge_sdk.generation import Chooser
from samples.nano.model.batch import Sequence, activity, collate
from samples.nano.model.checkpoint import Loaded, load
from samples.nano.model.fresh import write_fresh
from samples.nano.settings import TINY
from samples.nano.stages.asking import turns
from samples.nano.stages.data import Corpus, Item, Shares, draw, speech_batches, text_batches
from samples.nano.stages.examples import Prompter, system_words
from samples.nano.stages.layout import Layout
from samples.nano.stages.pairs import KINDS, Pairs, kind, preference_batches, wrong
from samples.nano.texts import checker
from samples.nano.texts.dialogues import Dialogue, dialogues
from samples.nano.texts.grid import word_steps, words_of
from tests.nano.sounds import SeededSounds

DIALOGUES = list(dialogues(1, 120, "train"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer").mkdir()
    write_text_tokenizer(folder / "tokenizer", TINY.language_spec())
    write_fresh(folder / "fresh", TINY, folder / "tokenizer", whisper=None, seed=1)
    return load(folder / "fresh")


@pytest.fixture(scope="module")
def bundle(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(loaded.folder, None, tmp_path_factory.mktemp("bundle") / "b", ExportOptions())


@pytest.fixture(scope="module")
def corpus(loaded: Loaded) -> Corpus:
    return Corpus(Prompter(loaded.folder, loaded.config), DIALOGUES, SeededSounds(TINY.codec.codes), Layout())


def some(corpus: Corpus, **wanted: Any) -> Iterator[Item]:
    """One item of each sort: spoken, calling, with history, with a developer's words, after a tool's result."""
    tests = (
        lambda i: i.turn.text and i.number == 1,
        lambda i: i.turn.tool_calls,
        lambda i: i.number > 3 and i.turn.text,
        lambda i: i.dialogue.system is not None,
        lambda i: i.dialogue.turns[i.number - 1].role == "tool",
    )
    for test in tests:
        yield next(i for i in corpus.items if test(i))


class Forced(Chooser):
    """Takes the ids of a sequence, whatever the scores say; what the loop makes of them is its own."""

    sequence: Sequence

    def text_id(self, output: Any, step: int) -> int:
        return int(self.sequence.text_ids[step])

    def forced_speech(self, step: int) -> Any:
        return None if self.sequence.groups is None else self.sequence.groups[step]


def device_reply(bundle: Path, corpus: Corpus, item: Item, sequence: Sequence, patch: pytest.MonkeyPatch) -> Any:
    """The SDK's reply to the item with the sequence's ids forced, and the ids of the prompt it was given."""
    prompts = []

    class Seen(Forced):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            prompts.append(kwargs["prompt_ids"])
            self.sequence = sequence

    patch.setattr(reply_module, "Chooser", Seen)
    speech = sequence.groups is not None
    generation = edge_sdk.GenerationConfig(do_sample=False, max_new_tokens=400)
    with edge_sdk.Chat(bundle, speech=speech, generation=generation) as chat:
        chat.configure(system=system_words(item.dialogue.system, speech), tools=list(item.dialogue.tools))
        chat.edit(turns(chat, item, corpus.sounds if speech else None))
        return chat.send(), prompts[0]


def test_a_spoken_reply_is_the_devices_own(bundle: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    model = corpus.prompter.model
    for item in some(corpus):
        sequence = corpus.spoken(item)
        reply, prompt = device_reply(bundle, corpus, item, sequence, monkeypatch)
        assert prompt == sequence.prompt_ids.tolist()
        assert reply.text == item.turn.text
        assert [c.raw for c in reply.tool_calls] == [c.raw for c in item.turn.tool_calls]
        assert checker.score(item.dialogue, item.number, reply.text, reply.tool_calls).success
        assert reply.text_ids == tuple(sequence.text_ids.tolist())
        codes = corpus.sounds.reply(item.turn.text) if corpus.sounds and item.turn.text else np.zeros(0)
        real = [i for i in reply.speech_ids if i != model.speech_ids.eos]
        assert real[: len(codes)] == codes.tolist()
        assert set(real[len(codes) :]) <= set(codes[-1:].tolist())  # silence after the end
        assert list(reply.speech_ids[len(real) :]) == [model.speech_ids.eos] * model.group_size
        returned, _ = activity(sequence.text_ids, sequence.groups, model)
        assert (sequence.speech_weight[returned] == 1).all()
        assert (sequence.speech_weight[~returned] == corpus.layout.idle_weight).all()


def test_a_written_reply_is_the_devices_own(bundle: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for item in some(corpus):
        sequence = corpus.written(item, 0.3)
        reply, prompt = device_reply(bundle, corpus, item, sequence, monkeypatch)
        assert prompt == sequence.prompt_ids.tolist()
        assert reply.text_ids == tuple(sequence.text_ids.tolist())
        assert (reply.text, [c.raw for c in reply.tool_calls]) == (
            item.turn.text,
            [c.raw for c in item.turn.tool_calls],
        )


def test_text_longer_than_its_speech(loaded: Loaded) -> None:
    """Nothing of it is lost: the speech waits in silence."""
    prompter = Prompter(loaded.folder, loaded.config)
    sounds = SeededSounds(TINY.codec.codes, codes=7)
    corpus = Corpus(prompter, DIALOGUES[4:5], sounds, Layout(lead_steps=1, sil_weight=0.25))
    sequence = corpus.spoken(corpus.items[0])
    said, ids = prompter.tokenizer.encode_plain(corpus.items[0].turn.text), loaded.config.text_ids
    assert sequence.text_ids.tolist() == [ids.audio_bos, *said, ids.audio_eos, ids.eos[0]]
    codes = sounds.reply(corpus.items[0].turn.text)
    assert sequence.groups[1].tolist() == [codes[-1]] * 5  # the lead
    assert sequence.groups[2:4].reshape(-1)[:7].tolist() == codes.tolist()
    assert (sequence.groups[4 : 1 + len(said)] == codes[-1]).all()
    longer = Corpus(prompter, DIALOGUES[4:5], SeededSounds(TINY.codec.codes, codes=200), corpus.layout)
    sequence = longer.spoken(longer.items[0])
    assert (sequence.text_weight[sequence.text_ids == ids.sil] == 0.25).all()
    assert (sequence.text_ids == ids.sil).sum() == 41 - len(said)


def test_text_that_goes_with_the_words(loaded: Loaded) -> None:
    """Each word stands where the grid says, nothing is lost, and speech is as long as before."""
    prompter, ids = Prompter(loaded.folder, loaded.config), loaded.config.text_ids
    sounds = SeededSounds(TINY.codec.codes, codes=200)
    dialogue = next(d for d in DIALOGUES if len(d.turns) == 2 and len(d.turns[1].text.split()) > 3)
    corpora = [Corpus(prompter, [dialogue], sounds, Layout(lead_steps=2, by_words=b)) for b in (False, True)]
    first, second = (corpus.spoken(corpus.items[0]) for corpus in corpora)
    assert np.array_equal(first.groups, second.groups)
    kept = second.text_ids[second.text_ids != ids.sil]
    assert kept.tolist() == first.text_ids[first.text_ids != ids.sil].tolist()
    said, _ = prompter.reply_ids(dialogue.turns[1])
    words = words_of([prompter.tokenizer.decode([i]) for i in said])
    steps = word_steps(words, [0.4 + s for s in sounds.starts_s(dialogue.turns[1].text)])
    at = np.flatnonzero(second.text_ids != ids.sil)[1 : 1 + len(said)] - 1
    beginnings = [n for n in range(len(words)) if n == 0 or words[n] != words[n - 1]]
    assert (at >= steps).all()
    assert any(at[n] == steps[n] > n for n in beginnings)  # it waits for its word


def test_batches_are_told_by_seed_and_step(corpus: Corpus) -> None:
    for make in (
        lambda seed: text_batches(corpus, 3, seed, 0.1),
        lambda seed: speech_batches(corpus, 3, seed, Shares(text=0.3)),
        lambda seed: preference_batches(corpus, 2, seed, dict.fromkeys(KINDS, 1.0)),
    ):
        one, again, other = make(1)(7), make(1)(7), make(2)(7)
        assert torch.equal(one.ids, again.ids)
        assert torch.equal(one.mel, again.mel)
        assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)
    lengths = [i.size for i in draw(corpus.items, 3, Random(1))]
    assert max(lengths) - min(lengths) < corpus.items[-1].size - corpus.items[0].size


def test_what_a_batch_is_made_of(corpus: Corpus) -> None:
    """All in text alone, all typed, all heard."""
    batch = speech_batches(corpus, 4, 1, Shares(text=1.0))(0)
    assert not batch.speech
    batch = speech_batches(corpus, 4, 1, Shares(typed=1.0))(0)
    assert batch.speech
    assert not len(batch.audio_at)
    batch = speech_batches(corpus, 4, 1)(0)
    assert batch.speech
    assert len(batch.audio_at)


def test_what_is_rejected_is_wrong(corpus: Corpus) -> None:
    pairs, random = Pairs(corpus.items), Random(1)
    kinds = set()
    for _ in range(60):
        chosen, rejected = pairs.draw(dict.fromkeys(KINDS, 1.0), random)
        kinds.add(kind(chosen))
        assert wrong(chosen, rejected)
        assert not wrong(chosen, chosen)
    assert kinds == set(KINDS)


def test_a_pair_differs_in_its_reply_alone(corpus: Corpus) -> None:
    batch = preference_batches(corpus, 2, 1, {"noise": 1.0})(0)
    for row in (0, 2):
        weights = batch.text_weight[row : row + 2] > 0
        begin = int(weights[0].float().argmax())
        assert begin == int(weights[1].float().argmax())
        assert torch.equal(batch.ids[row, : begin + 1], batch.ids[row + 1, : begin + 1])
        assert not torch.equal(batch.text_target[row][weights[0]], batch.text_target[row + 1][weights[1]])


def test_prompts_count_only_where_they_shall(corpus: Corpus) -> None:
    item = corpus.items[0]
    model = corpus.prompter.model
    batch = collate([corpus.written(item, 0.0), corpus.written(item, 0.5)], model)
    replies = batch.text_weight == 1
    assert torch.equal(replies[0], replies[1])
    assert not batch.text_weight[0][~replies[0]].any()
    assert (batch.text_weight[1] == 0.5).sum() == len(corpus.written(item, 0.5).prompt_ids) - 1


def test_dialogues_without_sound_are_left_out(loaded: Loaded) -> None:
    class Mute(SeededSounds):
        def reply(self, text: str) -> Any:
            return None

    prompter = Prompter(loaded.folder, loaded.config)
    corpus = Corpus(prompter, DIALOGUES, Mute(TINY.codec.codes), Layout())
    assert corpus.items
    assert not any(i.turn.text for i in corpus.items)
    talk: list[Dialogue] = [d for d in DIALOGUES if not any(t.tool_calls for t in d.turns)]
    with pytest.raises(edge_sdk.Error, match="no dialogue has a reply to learn from"):
        Corpus(prompter, talk, Mute(TINY.codec.codes), Layout())
