"""The device side against the reference's recordings: rows, states, scores, and every id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_sdk.audio import load_audio
from edge_sdk.backbone import BackboneOutput
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.clip import ClipEncoder
from edge_sdk.context import Context
from edge_sdk.encoder import Encoder
from edge_sdk.generation import Chooser, GenerationConfig, Generator, GroupPicker
from edge_sdk.prompt import Clip, Template
from edge_sdk.speech_head import PlainSpeechHead
from edge_sdk.tokenizer import Tokenizer
from tests import speech_goldens as goldens
from tests import tolerances


class Parts:
    """A bundle's language half, opened by hand so that every intermediate can be seen."""

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.manifest.model
        self.model = bundle.manifest.model
        self.runtime = bundle.runtime()
        self.tokenizer = Tokenizer(bundle.read_text(bundle.manifest.tokenizer))
        self.template = Template(bundle.read_text(bundle.manifest.chat_template), self.tokenizer, self.model)
        self.encoder = Encoder(self.runtime, self.model)
        self.clips: dict[str, Clip] = {}

    def clip(self, name: str) -> Clip:
        if name not in self.clips:
            encoder = ClipEncoder(self.encoder, self.model, "upstream")
            encoder.feed(load_audio(goldens.recording(name)))
            self.clips[name] = encoder.finish()
        return self.clips[name]


@pytest.fixture(scope="module")
def parts(speech_bundle_path: Any) -> Iterator[Parts]:
    with Bundle.open(speech_bundle_path) as bundle:
        yield Parts(bundle)


GREEDY = GenerationConfig(do_sample=False)


class Recorder(Chooser):
    """Picks as usual; keeps what it saw. With `forced`, takes the reference's ids instead."""

    def __init__(self, *args: Any, forced: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.forced = forced
        self.speech_logits: list[np.ndarray[Any, Any]] = []
        self.speech_scores: list[np.ndarray[Any, Any]] = []
        self.text_logits: list[np.ndarray[Any, Any]] = []
        self.text_scores: list[np.ndarray[Any, Any]] = []
        self.picks: list[int] = []

    def speech_id(self, logits: Any, step: int, sub_step: int) -> int:
        self.speech_logits.append(logits.copy())
        self.speech_scores.append(self.speech.process(logits, self.speech_history))
        self.picks.append(super().speech_id(logits, step, sub_step))
        return self.picks[-1]

    def forced_speech(self, step: int) -> Any:
        return None if self.forced is None else self.forced["raw_groups"][step]

    def took(self, step: int, ids: Any, logits: Any) -> None:
        for j in range(len(ids)):
            assert self.speech_id(logits[j], step, j) == ids[j]

    def text_id(self, output: BackboneOutput, step: int) -> int:
        self.text_logits.append(output.logits.copy())
        if self.text is not None:
            self.text_scores.append(self.text.process(output.logits, self.text_history, self.text_ids))
        return super().text_id(output, step) if self.forced is None else int(self.forced["text_tokens"][step])


def run(parts: Parts, name: str, forced: Any = None) -> tuple[Any, Recorder, list[Any], Context]:
    prompt = parts.template.render(goldens.messages(name, {c: parts.clip(c) for c in goldens.case(name)["audio"]}))
    config = goldens.config(name)
    context = Context(parts.runtime, parts.model, len(prompt) + config.max_new_tokens, speech=goldens.speaks(name))
    output = context.prefill(prompt)
    assert output is not None
    recorder = Recorder(
        parts.model, config, prompt_ids=prompt.ids.tolist(), bad_words=config.bad_words, seed=0, turn=0, forced=forced
    )  # type: ignore[arg-type]
    generator = Generator(parts.model, context.backbone, context.speech_head, config, recorder)
    return prompt, recorder, list(generator.steps(output)), context


@pytest.mark.parametrize("name", goldens.clips())
def test_encoder_rows(parts: Parts, name: str) -> None:
    expected = goldens.arrays(f"audio_{name}")["grouped"]
    clip = parts.clip(name)
    assert clip.rows.shape == expected.shape == (goldens.index()["audio"][name]["placeholders"], expected.shape[1])
    assert tolerances.relative(clip.rows, expected) < tolerances.ROWS_RELATIVE
    zero = goldens.index()["audio"][name]["zero_groups"]
    assert not clip.rows[len(clip.rows) - zero :].any()


@pytest.mark.parametrize("name", goldens.greedy_cases())
def test_prompt_and_prefill(parts: Parts, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sdk.context.PREFILL_ROWS", 1000)  # one run, so that one array takes all hidden rows
    expected = goldens.arrays(name)
    prompt = parts.template.render(goldens.messages(name, {c: parts.clip(c) for c in goldens.case(name)["audio"]}))
    assert prompt.ids.tolist() == expected["input_ids"].tolist()
    context = Context(parts.runtime, parts.model, len(prompt), speech=goldens.speaks(name))
    hidden = np.empty((len(prompt), parts.model.backbone.hidden_size), np.float32)
    context.backbone._prefill.out("hidden", hidden)
    output = context.prefill(prompt)
    assert output is not None
    assert tolerances.relative(hidden, expected["prefill_hidden"]) < tolerances.ROWS_RELATIVE
    assert np.abs(output.logits - expected["prefill_text_logits"]).max() < tolerances.TEXT_LOGITS_ABS


@pytest.mark.parametrize("name", goldens.greedy_cases())
def test_greedy_tokens(parts: Parts, name: str) -> None:
    expected, case = goldens.arrays(name), goldens.case(name)
    _, recorder, steps, context = run(parts, name)
    assert [s.text_id for s in steps] == expected["text_tokens"].tolist()
    assert parts.tokenizer.decode([s.text_id for s in steps]) == case["text"]
    assert parts.tokenizer.decode([s.text_id for s in steps], skip_special=False) == case["text_with_special"]
    assert steps[-1].finish_reason == {"max_new_tokens": "length", "text eos": "stop"}[case["stopped_by"]]
    _compare_top5(
        recorder.text_logits, expected["text_top5_ids"], expected["text_top5_logits"], tolerances.TEXT_LOGITS_ABS
    )
    if not goldens.speaks(name):
        assert all(s.group is None for s in steps)
        assert context.speech_head is None
        return
    groups = [s.group for s in steps if s.group is not None]
    assert np.concatenate(groups).tolist() == expected["speech_ids"].tolist()
    assert [s.group is not None for s in steps] == expected["speech_active"].astype(bool).tolist()
    assert recorder.picks == expected["raw_groups"].reshape(-1).tolist()
    ids, values = expected["crq_top5_ids"].reshape(-1, 5), expected["crq_top5_logits"].reshape(-1, 5)
    _compare_top5(recorder.speech_logits, ids, values, tolerances.SPEECH_LOGITS_ABS)


def _compare_top5(found: list[Any], ids: Any, values: Any, bound: float) -> None:
    assert len(found) == len(ids)
    for scores, best, expected in zip(found, ids, values, strict=True):
        assert np.abs(scores[best] - expected).max() < bound
        assert int(scores.argmax()) == best[0]


def test_speech_head_prefill(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain graphs, whose hidden rows can be seen, and the scores of the five prefill picks."""
    expected = goldens.arrays("s2s_syn1p3")
    prompt = parts.template.render(goldens.messages("s2s_syn1p3", {"syn1p3": parts.clip("syn1p3")}))
    monkeypatch.setattr(parts.runtime, "fused", lambda graph: None)
    context = Context(parts.runtime, parts.model, len(prompt), speech=True)
    head = context.speech_head
    assert isinstance(head, PlainSpeechHead)
    rows = int(expected["crq_prefill_lens"][0]) - 1  # the last of the first call is run with the picks
    hidden = np.empty((rows, parts.model.speech_head.hidden_size), np.float32)  # type: ignore[union-attr]
    head._calls["prefill"].out("hidden", hidden)
    output = context.prefill(prompt)
    assert output is not None
    recorder = Recorder(parts.model, GREEDY, prompt_ids=(), bad_words=(), seed=0, turn=0, forced=expected)
    head.start(GroupPicker(recorder, 0))
    assert tolerances.relative(hidden, expected["crq_prefill_out"][:rows]) < tolerances.ROWS_RELATIVE
    assert (
        np.abs(np.stack(recorder.speech_logits) - expected["crq_prefill_logits"]).max() < tolerances.SPEECH_LOGITS_ABS
    )


@pytest.mark.parametrize("name", goldens.sampled_cases())
def test_sampled_scores(parts: Parts, name: str) -> None:
    """The reference drew with torch's generator, which no other can repeat; its scores after each processor can be."""
    expected = goldens.arrays(name)
    prompt, recorder, steps, _ = run(parts, name, forced=expected)
    assert prompt.ids.tolist() == expected["input_ids"].tolist()
    assert [s.text_id for s in steps] == expected["text_tokens"].tolist()
    last = max(k for k in expected.files if k.startswith("text_after_"))
    assert np.abs(np.stack(recorder.text_logits) - expected["text_raw"]).max() < tolerances.TEXT_LOGITS_ABS
    for found, reference in zip(recorder.text_scores, expected[last], strict=True):
        assert np.array_equal(found > -np.inf, reference > -np.inf)
        kept = reference > -np.inf
        assert np.abs(found[kept] - reference[kept]).max() < tolerances.TEXT_LOGITS_ABS
    kept_ids = expected["crq_kept_ids"].reshape(-1, expected["crq_kept_ids"].shape[-1])
    kept_scores = expected["crq_kept_scores"].reshape(kept_ids.shape)
    for found, ids, scores, picked in zip(
        recorder.speech_scores, kept_ids, kept_scores, expected["raw_groups"].reshape(-1), strict=True
    ):
        real = ids >= 0
        assert sorted(np.flatnonzero(found > -np.inf)) == sorted(ids[real])
        assert np.abs(found[ids[real]] - scores[real]).max() < tolerances.SPEECH_LOGITS_ABS
        assert picked in ids[real]


@pytest.mark.parametrize("name", ["s2s_ck7vv9ag", "s2s_syn33", "s2t_ck7vv9ag", "s2t_function_call", "s2s_textonly"])
def test_through_the_public_api(speech_bundle: Bundle, name: str) -> None:
    """One turn of a golden conversation by Chat alone, from the recording's file."""
    case, expected = goldens.case(name), goldens.arrays(name)
    system, user = case["conversation"]
    config: GenerationConfig = goldens.config(name)
    audio = str(goldens.recording(case["audio"][0])) if case["audio"] else None
    text = user["content"].removeprefix(goldens.PLACEHOLDER).removeprefix("\n") or None
    with Chat(
        speech_bundle,
        system=system["content"],
        speech=goldens.speaks(name),
        generation=config,
        context_tokens=512,
        long_audio="upstream",
    ) as chat:
        reply = chat.send(audio, text)
    assert list(reply.text_ids) == expected["text_tokens"].tolist()
    assert reply.text == case["text"]
    assert list(reply.speech_ids) == (expected["speech_ids"].tolist() if goldens.speaks(name) else [])


def test_two_turns_through_the_public_api(speech_bundle: Bundle) -> None:
    first, expected = goldens.case("s2s_twoturn")["conversation"][2]["content"], goldens.arrays("s2s_twoturn")
    with Chat(speech_bundle, generation=goldens.config("s2s_twoturn"), context_tokens=512) as chat:
        chat.add("user", audio=str(goldens.recording("syn1p3")))
        chat.add("assistant", text=first)
        reply = chat.send(str(goldens.recording("syn7p9")))
        assert list(reply.text_ids) == expected["text_tokens"].tolist()
        assert list(reply.speech_ids) == expected["speech_ids"].tolist()
    # And as it would have happened: the first answer generated, not added. It is the same text.
    with Chat(speech_bundle, generation=goldens.config("s2s_syn1p3"), context_tokens=512) as chat:
        assert chat.send(str(goldens.recording("syn1p3"))).text == first
        reply = chat.send(str(goldens.recording("syn7p9")))
        assert list(reply.text_ids) == expected["text_tokens"].tolist()
        assert list(reply.speech_ids) == expected["speech_ids"].tolist()
        assert reply.timings.reused_tokens >= 47  # the first prompt was not computed again
