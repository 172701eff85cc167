"""The fused speech head against the plain graphs: the same ids, the same scores, over the same bytes of weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import Error
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.generation import GenerationConfig
from edge_sdk.native import ort_ops_unavailable
from edge_sdk.runtimes import ort
from edge_sdk.sampling import History, Sampling, uniform
from edge_sdk.speech_head import FusedSpeechHead, PlainSpeechHead, SpeechHead, open_speech_head
from tests import speech_goldens as goldens
from tests import tolerances

pytestmark = pytest.mark.skipif(bool(ort_ops_unavailable()), reason=ort_ops_unavailable())
Array = np.ndarray[Any, Any]
POSITIONS = 40


class Recorder:
    """Picks by its settings as a Chooser does; keeps the scores. With `forced`, takes those ids."""

    def __init__(self, codes: int, sampling: Sampling, forced: list[Array] | None = None) -> None:
        self.sampling, self.seed, self.turn, self.step = sampling, 99, 1, 0
        self._history, self._forced = History(codes), forced
        self.scores: list[Array] = []

    @property
    def seen(self) -> Array:
        return self._history.seen

    @property
    def forced(self) -> Array | None:
        return None if self._forced is None else self._forced[self.step]

    def pick(self, logits: Array, sub_step: int) -> int:
        self.scores.append(logits.copy())
        number = uniform(self.seed, self.turn, self.step, sub_step)
        picked = self.sampling.pick(logits, self._history, number) if self.forced is None else self.forced[sub_step]
        self._history.add(int(picked))
        return int(picked)

    def took(self, ids: Array, logits: Array) -> None:
        self.scores += list(logits.copy())
        for i in ids:
            self._history.add(int(i))


def converse(head: SpeechHead, hidden: int, recorder: Recorder) -> list[Array]:
    """A prefill in pieces, a rewind, groups; the same inputs for every head."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((POSITIONS, hidden)).astype(np.float32)
    head.prefill(rows[:1])
    head.prefill(rows[1:20])
    head.rewind(11, rows[10:11])
    head.prefill(rows[11:24])
    made = [head.start(recorder)]
    for n in range(24, POSITIONS - 10):
        recorder.step += 1
        made.append(head.step(rows[n : n + 1], recorder))
    assert head.cache.length == 5 * len(rows[:30])
    return made


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("head") / f"{request.param}.bundle"
    export_bundle(goldens.CHECKPOINT, None, path, ExportOptions(precision=request.param))
    with Bundle.open(path) as opened:
        yield opened


def heads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[SpeechHead, SpeechHead]:
    model = bundle.manifest.model
    assert model
    assert model.speech_head
    fused = open_speech_head(ort.open_runtime(bundle, device_id=0, threads=2), model, model.speech_head, POSITIONS)
    monkeypatch.setenv("EDGE_SDK_NATIVE", "off")
    plain = open_speech_head(ort.open_runtime(bundle, device_id=0, threads=2), model, model.speech_head, POSITIONS)
    assert isinstance(fused, FusedSpeechHead)
    assert isinstance(plain, PlainSpeechHead)
    return fused, plain


def test_same_scores(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bundle.manifest.model
    assert model
    fused, plain = heads(bundle, monkeypatch)
    first, second = (Recorder(model.speech_ids.codebook_size, Sampling()) for _ in range(2))
    second._forced = converse(fused, model.backbone.hidden_size, first)
    converse(plain, model.backbone.hidden_size, second)
    precision = bundle.manifest.graphs["speech_head"].precision
    assert tolerances.relative(np.array(first.scores), np.array(second.scores)) < tolerances.FUSED_HEAD[precision]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1.2),
        Sampling(do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.2),
        Sampling(do_sample=True, top_k=7),
    ],
    ids=["greedy", "top p", "top k"],
)
def test_same_ids(speech_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sampling: Sampling) -> None:
    model = speech_bundle.manifest.model
    assert model
    fused, plain = heads(speech_bundle, monkeypatch)
    made = [
        converse(head, model.backbone.hidden_size, Recorder(model.speech_ids.codebook_size, sampling))
        for head in (fused, plain)
    ]
    assert np.array_equal(made[0], made[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(speech_bundle: Bundle, threads: int) -> None:
    model = speech_bundle.manifest.model
    assert model
    assert model.speech_head
    scores = []
    for count in (1, threads):
        runtime = ort.open_runtime(speech_bundle, device_id=0, threads=count)
        recorder = Recorder(model.speech_ids.codebook_size, Sampling())
        converse(open_speech_head(runtime, model, model.speech_head, POSITIONS), model.backbone.hidden_size, recorder)
        scores.append(recorder.scores)
    assert np.array_equal(scores[0], scores[1])


def test_bad_numbers_are_refused_and_the_head_goes_on(speech_bundle: Bundle) -> None:
    model = speech_bundle.manifest.model
    assert model
    assert model.speech_head
    runtime = ort.open_runtime(speech_bundle, device_id=0, threads=2)
    head = open_speech_head(runtime, model, model.speech_head, POSITIONS)
    rows = np.ones((2, model.backbone.hidden_size), np.float32)
    head.prefill(rows)
    recorder = Recorder(model.speech_ids.codebook_size, Sampling())
    expected = head.start(recorder)
    head.rewind(2, rows[1:])
    with pytest.raises(Error, match="NaN or infinity"):
        head.step(rows[:1] * np.float32(np.nan), Recorder(model.speech_ids.codebook_size, Sampling()))
    assert np.array_equal(head.start(Recorder(model.speech_ids.codebook_size, Sampling())), expected)


def test_a_reply_is_the_same_with_and_without(speech_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(seed=5, max_new_tokens=20)
    with Chat(speech_bundle, generation=config) as chat:
        assert isinstance(chat._context.speech_head, FusedSpeechHead)
        first = [chat.send(text=text) for text in ("one", "two")]
    monkeypatch.setenv("EDGE_SDK_NATIVE", "off")
    with Bundle.open(speech_bundle.path) as again, Chat(again, generation=config) as chat:
        assert isinstance(chat._context.speech_head, PlainSpeechHead)
        second = [chat.send(text=text) for text in ("one", "two")]
    assert [r.text_ids for r in first] == [r.text_ids for r in second]
    assert [list(r.speech_ids) for r in first] == [list(r.speech_ids) for r in second]


def test_what_is_missing_is_logged_once(
    speech_bundle_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDGE_SDK_NATIVE", str(tmp_path))
    caplog.set_level(logging.INFO, "edge_sdk.runtimes")
    with Bundle.open(speech_bundle_path) as bundle:
        for _ in range(2):
            Chat(bundle).close()
    said = [r.message for r in caplog.records if "plain ops" in r.message]
    assert len(said) == 1
    assert "were not built" in said[0]
    assert str(tmp_path) in said[0]
