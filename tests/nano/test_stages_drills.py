"""What makes the stages affordable on a CPU: drills, questions heard once, a speech head near its reply; and that none
of it changes what is computed."""

# ruff: noqa: E402  (what may not be installed is asked for before what needs it)

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recipe needs PyTorch")
pytest.importorskip("safetensors", reason="the recipe needs safetensors")

from edge_sdk.errors import Error
from edge_sdk.export.random_checkpoint.tokenizer import write_text_tokenizer
from edge_sdk.prompt import SYSTEM_SPEECH, system_message
from samples.nano.model.batch import Batch, Sequence, collate, near_reply
from samples.nano.model.checkpoint import Loaded, load
from samples.nano.model.fresh import write_fresh
from samples.nano.settings import TINY
from samples.nano.stages import examples, hear
from samples.nano.stages.data import Corpus, Item, Shares, last_replies, speech_batches, text_batches
from samples.nano.stages.drills import FIGURES, HEAR, MOST_TIMES, OFTEN, evened, figures, hear_items, read_items
from samples.nano.stages.examples import Heard, Prompter, history_weight
from samples.nano.stages.layout import Layout
from samples.nano.stages.loss import cross_entropy
from samples.nano.texts.dialogues import Dialogue, Turn, dialogues
from samples.nano.texts.numbers import canonical, clock, part_of_day
from samples.nano.texts.tools import TOOLS
from samples.nano.texts.train_tokenizer import TEMPLATE
from tests import tolerances
from tests.nano.sounds import ListedSounds, SeededSounds


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer").mkdir()
    write_text_tokenizer(folder / "tokenizer", TINY.language_spec())
    write_fresh(folder / "fresh", TINY, folder / "tokenizer", whisper=None, seed=1)
    return load(folder / "fresh")


def corpus_of(loaded: Loaded, layout: Layout | None = None, longest: int | None = None) -> Corpus:
    sounds = SeededSounds(TINY.codec.codes, codes=30)
    few = [d for d in dialogues(1, 200, "train") if not d.tools]
    return Corpus(Prompter(loaded.folder, loaded.config), few, sounds, layout or Layout(), longest)


def test_drills_have_one_line_each(loaded: Loaded) -> None:
    corpus = corpus_of(loaded)
    hears, reads = hear_items(corpus), read_items(corpus)
    asked = {t.text for i in corpus.items for t in i.dialogue.turns if t.role == "user"}
    said = {t.text for i in corpus.items for t in i.dialogue.turns if t.role == "assistant" and t.text}
    assert ({i.turn.text for i in hears}, {i.turn.text for i in reads}) == (asked, said)
    assert all(i.dialogue.turns[0].text == i.dialogue.turns[1].text for i in [*hears, *reads])
    more = [Dialogue("m", "train", "mixed", None, (), (Turn("user", "Off the."), Turn("assistant", "Lamp it.")))]
    assert {i.turn.text for i in hear_items(corpus, more)} - asked == {"Off the."}
    assert {i.turn.text for i in read_items(corpus, more)} - said == {"Lamp it."}
    heard = corpus.heard_and_written(hears[0], 0)
    words = corpus.prompter.tokenizer.decode(heard.prompt_ids.tolist())
    assert heard.groups is None and len(heard.mels) == 1 and HEAR in words and hears[0].turn.text not in words
    read = corpus.spoken(reads[0], typed=True)
    assert read.groups is not None and not read.mels


def test_rare_words_are_met_more_often() -> None:
    def item(text: str) -> Item:
        return Item(Dialogue(text, "train", "drill", HEAR, (), (Turn("user", text), Turn("assistant", text))), 1)

    texts = {"The light is on.": OFTEN, "The lamp is on.": 10, "The oven is on.": 1, "Oven, off!": 1, "?": 1}
    times = Counter(i.turn.text for i in evened(item(text) for text, count in texts.items() for _ in range(count)))
    assert OFTEN / 2 > MOST_TIMES and times == {
        "The light is on.": OFTEN,
        "The lamp is on.": OFTEN,
        "The oven is on.": MOST_TIMES,
        "Oven, off!": MOST_TIMES,
        "?": 1,  # no word is no rare word
    }


def test_a_step_is_of_one_kind(loaded: Loaded) -> None:
    corpus = corpus_of(loaded)
    hears, reads = hear_items(corpus), read_items(corpus)
    batch = speech_batches(corpus, 2, 1, Shares(hear=1.0), hears, reads)(0)
    assert len(batch.ids) == 4 and not batch.speech and len(batch.audio_at)
    batch = speech_batches(corpus, 2, 1, Shares(read=1.0), hears, reads)(0)
    assert len(batch.ids) == 2 and batch.speech and not len(batch.audio_at)


def test_an_answer_in_text_takes_the_whole_dialogue(loaded: Loaded) -> None:
    """Every reply counts from its first id to its end, of dialogues without sound, too."""
    corpus = corpus_of(loaded)
    new = next(d for d in dialogues(2, 200, "train") if not d.tools and len(d.turns) > 4)
    more = last_replies(Corpus(corpus.prompter, [new], None, Layout()).items)
    heard, typed = (speech_batches(corpus, 2, 1, Shares(answer=1.0, heard=s), answers=more)(0) for s in (1.0, 0.0))
    assert not heard.speech and not typed.speech
    assert len(heard.audio_at) and not len(typed.audio_at)
    alone = copy.copy(corpus)
    alone.items = []
    batch = speech_batches(alone, 1, 1, Shares(answer=1.0), answers=more)(0)
    replies = [corpus.prompter.reply_ids(t) for t in new.turns if t.role == "assistant"]
    assert len(replies) > 1 and not len(batch.audio_at)
    assert int((batch.text_weight > 0).sum()) == sum(len(said) + len(calls) + 1 for said, calls in replies)


def test_codes_that_slip_enter_and_are_not_picked(loaded: Loaded) -> None:
    corpus = corpus_of(loaded)
    reads = read_items(corpus)
    right, slipped = (speech_batches(corpus, 8, 1, Shares(read=1.0, slips=s), (), reads)(0) for s in (0.0, 0.25))
    for name in ("ids", "mixed", "text_target", "text_weight", "speech_target", "speech_weight"):
        assert torch.equal(getattr(right, name), getattr(slipped, name)), name
    assert torch.equal(slipped.groups, speech_batches(corpus, 8, 1, Shares(read=1.0, slips=0.25), (), reads)(0).groups)
    special, size = loaded.config.speech_ids, right.groups.shape[2]
    for name in ("groups", "previous"):
        was, now = getattr(right, name), getattr(slipped, name)
        codes = ~torch.isin(was, torch.tensor([special.bos, special.eos, special.pad]))
        assert torch.equal(was[~codes], now[~codes])
        # Fewer than asked for: another may be the same (silence), or run over the end.
        assert 0.05 < float((was != now)[codes].float().mean()) < 0.3
        assert set(now[codes].tolist()) <= set(was[codes].tolist())
    # What slips is the same for the backbone and for the head: a group enters where its picks have.
    picks = slipped.previous.roll(-1, 1).unflatten(1, (-1, size))[:, :-1]
    mixed = slipped.mixed[:, 1:]
    assert mixed.any() and torch.equal(picks[mixed], slipped.groups[:, 1:][mixed])


def test_turns_with_long_prompts_are_left_out(loaded: Loaded) -> None:
    everything = corpus_of(loaded)
    lengths = sorted(everything.prompt_ids(item) for item in everything.items)
    limit = lengths[len(lengths) // 2]
    kept = corpus_of(loaded, longest=limit)
    assert [everything.prompt_ids(i) for i in kept.items] == [
        n for n in map(everything.prompt_ids, everything.items) if n <= limit
    ]
    with pytest.raises(Error, match="no dialogue"):
        corpus_of(loaded, longest=lengths[0] - 1)


def test_a_head_that_sees_the_whole_prompt_is_unchanged(loaded: Loaded) -> None:
    corpus, model = corpus_of(loaded), copy.deepcopy(loaded.model)
    batch = speech_batches(corpus, 3, 1)(0)
    with torch.no_grad():
        whole, numbers = cross_entropy(model, batch)
        cut, near = cross_entropy(model, batch, head_context=batch.ids.shape[1])
        hidden, nothing, _ = near_reply(model.hidden(batch), batch, 0)
    assert (
        abs(float(whole - cut)) < tolerances.LOSS_ABS
        and abs(float(numbers["speech"] - near["speech"])) < tolerances.LOSS_ABS
    )
    size = batch.groups.shape[2]
    assert hidden.shape[1] < batch.ids.shape[1]
    for row in range(len(batch.ids)):
        kept, wanted = nothing.speech_weight[row] > 0, batch.speech_weight[row] > 0
        assert torch.equal(nothing.speech_target[row][kept], batch.speech_target[row][wanted])
        assert torch.equal(nothing.previous[row][kept], batch.previous[row][wanted])
        first = int(torch.nonzero(wanted)[0]) // size
        assert int(nothing.ids[row, 0]) == int(batch.ids[row, first])


def test_a_sample_of_the_prompt_stands_for_all_of_it(loaded: Loaded) -> None:
    """Each position taken once is the whole prompt; a few of them come nearer to it than the last ones alone do."""
    corpus, model = corpus_of(loaded), loaded.model
    batch = speech_batches(corpus, 3, 1)(0)

    def picks(sampled: int) -> torch.Tensor:
        """What the head makes of each pick that counts [K, width]."""
        hidden, kept, places = near_reply(model.hidden(batch), batch, 1, sampled)
        return model.head_hidden(kept, hidden, places)[kept.speech_weight > 0]

    with torch.no_grad():
        whole = model.head_hidden(batch, model.hidden(batch))[batch.speech_weight > 0]
        near = (picks(0) - whole).norm()
        assert (picks(batch.ids.shape[1]) - whole).norm() < tolerances.LOSS_ABS * whole.norm() < near
        assert not torch.equal(picks(6), picks(6)), "drawn anew in each step"
        torch.manual_seed(1)
        assert (torch.stack([picks(6) for _ in range(16)]).mean(0) - whole).norm() < near / 2


def test_sampled_positions_are_weighted_by_what_they_stand_for(loaded: Loaded) -> None:
    corpus, model = corpus_of(loaded), loaded.model
    batch, size = speech_batches(corpus, 3, 1)(0), model.config.group_size
    with torch.no_grad():
        _, _, places = near_reply(model.hidden(batch), batch, 1, 4)
    spoken = (batch.speech_weight.unflatten(1, (-1, size)) > 0).any(2).int()
    for row, first in enumerate(spoken.argmax(1).tolist()):
        at = places.positions[row, ::size] // size
        assert torch.equal(at, at.sort().values) and int(at[3]) < first - 1 == int(at[4])
        assert abs(float(places.key_bias[row, : 4 * size : size].exp().sum()) - (first - 1)) < 1e-2
        assert not places.key_bias[row, 4 * size :].any()


def test_a_question_begun_later(loaded: Loaded) -> None:
    """Higher takes are the same users, other rows of an encoded clip make a group; a mel stays as it is."""
    corpus = corpus_of(loaded)
    text = hear_items(corpus)[0].turn.text
    assert corpus.mel(text, 0) is corpus.mel(text, corpus.sounds.takes)  # type: ignore[union-attr]
    rows = np.arange(23.0, dtype=np.float16)[:, None]
    corpus.mels[text, 0] = Heard(np.empty((0, 0), np.float32), 5, rows)
    lengths = set()
    for later in range(40):
        heard = corpus.mel(text, later * corpus.sounds.takes)  # type: ignore[union-attr]
        assert heard is not None and heard.encoded is not None
        found = heard.encoded[:, 0].tolist()
        assert heard.placeholders == -(-len(found) // 5)
        if later < 5:
            assert found == list(range(later, 23))
        else:  # and hurried: some rows are missing, those that are there keep their order
            assert found == sorted(set(found)) and set(found) <= set(range(later % 5, 23))
            assert later // 5 % 2 or len(found) == 23 - later % 5
            lengths.add(len(found) + later % 5)
    assert min(lengths) < 23 < 1 + max(lengths) and min(lengths) > 15


def test_two_questions_in_one_breath(loaded: Loaded) -> None:
    corpus = corpus_of(loaded)
    first, second = list({i.turn.text: i for i in hear_items(corpus)}.values())[:2]
    with pytest.raises(Error, match="hear"):
        corpus.heard_and_written(first, 0, second)
    for item, rows in ((first, 7), (second, 9)):
        heard = Heard(np.empty((0, 0), np.float32), -(-rows // 5), np.full((rows, 4), rows, np.float16))
        for take in range(corpus.sounds.takes):  # type: ignore[union-attr]
            corpus.mels[item.turn.text, take] = heard
    both = corpus.heard_and_written(first, 0, second)
    assert both.placeholders == (4,) and both.encoded[0][:, 0].tolist() == [7.0] * 7 + [9.0] * 9
    assert corpus.prompter.tokenizer.decode(both.text_ids[:-1].tolist()) == f"{first.turn.text} {second.turn.text}"
    found = [speech_batches(corpus, 1, 1, Shares(hear=1, both=share), [first, second])(0) for share in (0.0, 1.0)]
    clips = [(batch.ids == corpus.prompter.model.text_ids.audio).sum(1).tolist() for batch in found]
    assert max(clips[0]) <= 2 < min(clips[1])


def test_what_is_heard_is_dropped_in_training_alone(loaded: Loaded) -> None:
    corpus, model = corpus_of(loaded), copy.deepcopy(loaded.model)
    batch = speech_batches(corpus, 3, 1)(0)
    model.hear_dropout = 0.5
    with torch.no_grad():
        kept, dropped = model.eval().audio_rows(batch), model.train().audio_rows(batch)
        assert torch.equal(kept, loaded.model.eval().audio_rows(batch)) and not torch.equal(kept, dropped)


def test_history_counts_from_its_second_id(loaded: Loaded) -> None:
    corpus = corpus_of(loaded, Layout(history_weight=0.5))
    item = next(i for i in corpus.items if i.number >= 3 and i.dialogue.turns[1].text)
    sequence, tokenizer = corpus.spoken(item), corpus.prompter.tokenizer
    assert sequence.prompt_weight is not None
    counted = [int(sequence.prompt_ids[at + 1]) for at in np.flatnonzero(sequence.prompt_weight)]
    said: list[int] = []
    for turn in item.dialogue.turns[: item.number]:
        if turn.role == "assistant":
            words, calls = corpus.prompter.reply_ids(turn)
            said += [*words.tolist()[1:], *calls.tolist()[0 if len(words) else 1 :], loaded.config.text_ids.eos[0]]
    assert counted == said, (tokenizer.decode(counted), tokenizer.decode(said))
    assert history_weight(sequence.prompt_ids, loaded.config, 0.0) is None


def test_what_was_heard_once_is_what_the_encoder_says(loaded: Loaded, tmp_path: Path) -> None:
    sounds = ListedSounds(TINY.codec.codes)
    found = hear.encode(loaded, sounds, torch.device("cpu"))  # type: ignore[arg-type]
    hear.write(tmp_path, hear.digest(loaded.model), found)
    kept = hear.read(tmp_path, loaded.model)
    assert set(kept) == {(text, take) for text in sounds.clips for take in range(2)}
    corpus = corpus_of(loaded)
    for key, heard in kept.items():
        again = Heard.of(sounds.question(*key), loaded.config)
        rows = []
        for h in (heard, again):
            dialogue = hear_items(corpus)[0]
            corpus.mels[dialogue.dialogue.turns[0].text, 0] = h
            batch = collate([corpus.heard_and_written(dialogue, 0)], loaded.config)
            with torch.no_grad():
                rows.append(loaded.model.audio_rows(batch))
        assert rows[0].shape == rows[1].shape
        assert float((rows[0] - rows[1]).abs().max()) < tolerances.HEARD_RELATIVE * float(rows[1].abs().max())


@pytest.mark.parametrize("seconds", [0.64, 6.4], ids=["one window", "several"])
def test_the_last_layer_can_follow_later(loaded: Loaded, seconds: float) -> None:
    """Rows that enter it are kept, and through it become what the whole encoder makes; only it is then moved."""
    model, sound = copy.deepcopy(loaded.model), SeededSounds(TINY.codec.codes).question("on", 0)
    # Lengths of even rows: of an odd one's last row only the whole encoder hears anything.
    heard = [Heard.of(np.resize(sound, int(16000 * length)), loaded.config) for length in (seconds, 0.48)]
    entering = hear.rows_of(model, heard, torch.device("cpu"), last=False)
    both = [Heard.kept(rows, h.placeholders, loaded.config) for h, rows in zip(heard, entering, strict=True)]
    audio = loaded.config.text_ids.audio

    def batch_of(of: list[Heard]) -> Batch:
        count = sum(h.placeholders for h in of)
        sequence = Sequence(np.full(count, audio), np.zeros(1, np.int64), **examples.clips(dict(enumerate(of))))
        return collate([sequence], loaded.config)

    def windows(of: Heard) -> list[int]:
        """Rows of each window."""
        batch = batch_of([of])
        return (batch.windows < len(batch.encoded)).sum(dim=1).tolist()

    whole, half = [len(h.encoded) for h in both if h.encoded is not None], loaded.config.encoder.n_window // 2
    full, left = divmod(whole[0], half)
    assert windows(both[0]) == [half] * full + [left] * (left > 0)
    assert windows(both[0].later(3, 5)) == [windows(both[0])[0] - 3, *windows(both[0])[1:]], "the others stay"
    assert windows(both[0].then(both[1], 5)) == windows(both[0]) + windows(both[1]), "a clip begins a window"
    hurried = both[0].later(0, 5, hurried=3)
    assert len(windows(hurried)) == len(windows(both[0])) and sum(windows(hurried)) == len(hurried.encoded)  # type: ignore[arg-type]

    found, wanted = (model.audio_rows(batch_of(of)) for of in (both, heard))
    assert found.shape == wanted.shape
    difference = (found - wanted).detach().abs().max()
    assert float(difference) < tolerances.HEARD_RELATIVE * float(wanted.detach().abs().max())
    found.sum().backward()
    moved = {name for name, p in model.continuous_audio_tower.named_parameters() if p.grad is not None}
    last = f"layers.{loaded.config.encoder.num_layers - 1}."
    assert {name.split(".")[0] for name in moved} == {"layers", "ln_post", "proj"}
    assert all(name.startswith(last) for name in moved if name.startswith("layers."))


def test_another_encoder_does_not_get_it(loaded: Loaded, tmp_path: Path) -> None:
    hear.write(tmp_path, hear.digest(loaded.model), hear.encode(loaded, ListedSounds(9), torch.device("cpu")))  # type: ignore[arg-type]
    other = copy.deepcopy(loaded.model)
    with torch.no_grad():
        other.continuous_audio_tower.layers[0].fc1.bias += 1
    assert hear.read(tmp_path, other) == {}
    (tmp_path / "rows.npy").write_bytes(b"no array")
    with pytest.raises(Error, match="hear again"):
        hear.read(tmp_path, loaded.model)


def test_the_template_is_short_and_keeps_names() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    message = system_message(f"{SYSTEM_SPEECH} Be brief.", list(TOOLS.values()))
    system = "".join(piece[0] for piece in message.pieces if isinstance(piece, tuple))
    turns = [
        {"role": "system", "content": system},
        {"role": "user", "content": "<tool_response>\n{\"ok\": true}\n</tool_response>"},
    ]  # fmt: skip
    made = template.render(messages=turns, add_generation_prompt=True)
    lines = made.splitlines()
    assert lines[:2] == ["<|im_start|>system", "Speak. Be brief."]
    assert lines[-3:] == ["<|im_start|>tool", '{"ok": true}<|im_end|>', "<|im_start|>assistant"]
    assert (
        '"set_timer", "description": "Start a timer" {"hours": integer, "minutes": integer, "seconds": integer}'
        in lines
    )
    assert len(lines) == 2 + len(TOOLS) + 3 and len(made) < len(system) / 1.5


def test_figures_and_words(loaded: Loaded) -> None:
    """Both ways, and the same value whichever way."""
    prompter, seen = corpus_of(loaded).prompter, set()
    made = figures(prompter, 200, Random(1))
    for sequence in made:
        asked = prompter.tokenizer.decode(sequence.prompt_ids.tolist())
        answer = prompter.tokenizer.decode(sequence.text_ids.tolist())
        to_words = answer.startswith("It's ")
        figure = json.loads(asked[asked.index("{") : asked.rindex("}") + 1] if to_words else answer)
        ((name, value),) = figure.items()
        seen.add((name, to_words))
        words = answer if to_words else asked.split(FIGURES)[1]
        if name == "time":
            hour, minute = map(int, value.split(":"))
            assert f"{clock(hour, minute)} {part_of_day(hour)}" in words.lower()
        else:
            assert f"{value:g}" in canonical(words)
        assert sequence.groups is None and not sequence.mels
    assert len(seen) == 10
    assert decoded(made) == decoded(figures(prompter, 200, Random(1)))


def decoded(made: list[Sequence]) -> list[list[int]]:
    return [s.text_ids.tolist() for s in made]


def test_each_dialogue_once_with_all_its_replies(loaded: Loaded) -> None:
    """What counts beside the last reply is what the earlier turns say when each is asked for alone, in text."""
    corpus = corpus_of(loaded)
    found = last_replies(corpus.items)
    assert sorted(i.dialogue.id for i in found) == sorted({i.dialogue.id for i in corpus.items})
    assert all(i.number == max(o.number for o in corpus.items if o.dialogue.id == i.dialogue.id) for i in found)
    item = max(found, key=lambda i: sum(t.role == "assistant" for t in i.dialogue.turns))
    once = corpus.written(item, 0.1, 1.0)
    assert once.prompt_weight is not None and set(once.prompt_weight.tolist()) == {np.float32(0.1), 1.0}
    counted = once.prompt_ids[1:][once.prompt_weight == 1.0].tolist()
    before = [n for n, turn in enumerate(item.dialogue.turns[: item.number]) if turn.role == "assistant"]
    assert len(before) > 1
    alone = [corpus.written(Item(item.dialogue, n), 0.1).text_ids.tolist() for n in before]
    assert counted == [i for ids in alone for i in ids]
    batch = text_batches(corpus, 4, 1, 0.1, replies_weight=1.0, items=found)(0)
    assert set(batch.text_weight.unique().tolist()) == {0.0, np.float32(0.1), 1.0}
