"""`verify --against`: a bundle on this machine beside the plain reference on the checkpoint, stage by stage.

The bundle answers a made-up question, greedily. The reference is then run over the same ids in one pass (teacher
forcing), so that one early difference does not hide what comes after it; token agreement says at how many decisions the
reference would have chosen the same id.

A bundle with narrower weights is compared twice: with the reference in the arithmetic of the bundle
(quantized_reference.py), which it must equal, and with the float32 one, which tells what the narrower weights cost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.audio import load_audio
from edge_sdk.bundle import Bundle
from edge_sdk.clip import ClipEncoder
from edge_sdk.config import ModelConfig
from edge_sdk.encoder import Encoder
from edge_sdk.errors import BundleError, ExportError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.language import read_text_files
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.quantized_reference import QuantizedLanguage
from edge_sdk.export.recipe import manifest_policy
from edge_sdk.export.reference.language import LanguageReference
from edge_sdk.export.weights import language_weights
from edge_sdk.generation import Step
from edge_sdk.manifest import LANGUAGE_GRAPHS
from edge_sdk.mel import log_mel
from edge_sdk.prompt import Clip, Prompt
from edge_sdk.runtime import Array
from edge_sdk.selftest import Trace, question, trace_reply

STEPS = 16


@dataclass(frozen=True)
class Bound:
    """What a stage may differ by: norm of the difference over the norm, and the share of equal choices."""

    relative: float
    agreement: float = 1.0
    grows: bool = False  # with the square root of the layers that lie before the stage

    def after(self, layers: int) -> Bound:
        return dataclasses.replace(self, relative=self.relative * math.sqrt(layers)) if self.grows else self


# One table; tests/tolerances.py holds the bounds on goldens. Int8 activations make a step function of every layer: the
# last bit of a float32 sum decides now and then which step is taken, so that two right computations agree to 1e-6 or,
# once one value took another step, to the size of such steps: up to 1e-2 times the square root of the layers, over all
# shapes in tests/export/test_parity.py and one of 36 and 28 layers (docs/NOTES.md).
BOUNDS: dict[str, Bound] = {
    "fp32": Bound(relative=1e-4),
    "fp16": Bound(relative=1e-4),
    "int8": Bound(relative=2.5e-2, agreement=0.8, grows=True),
    "int4": Bound(relative=2.5e-2, agreement=0.8, grows=True),
}
# Against float32: what rounding may cost before something must be wrong. Random weights, which nothing trained to bear
# it, lose up to 1.5e-3, 0.17 (0.26 where another expert was chosen) and 0.8; another checkpoint's would be off by 1.4.
# Choices are told, not judged.
COSTS: dict[str, Bound] = {
    "fp16": Bound(relative=1e-2, agreement=0.0),
    "int8": Bound(relative=0.5, agreement=0.0),
    "int4": Bound(relative=1.1, agreement=0.0),
}


@dataclass(frozen=True)
class Stage:
    """One line of the table. `against`: "fp32" weights, or the "same" weights as the bundle's."""

    name: str
    max_abs: float
    relative: float
    agreement: float | None
    ok: bool
    against: str = "fp32"

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.name, "against": self.against, "max_abs": self.max_abs, "relative": self.relative,
            "agreement": self.agreement, "ok": self.ok,
        }  # fmt: skip


@dataclass(frozen=True)
class _Answer:
    """What the bundle made of the question: its encoder rows, and a greedy reply to the reference's rows."""

    mel: Array
    placeholders: int
    rows: Array
    prompt: Prompt
    made: list[Step]
    trace: Trace


def compare_language(bundle: Bundle, checkpoint: str | os.PathLike[str], *, steps: int = STEPS) -> list[Stage]:
    """Run both and compare encoder rows, backbone states, and the scores and choices of both heads.

    Raises:
        CheckpointError: the checkpoint does not fit its own configuration.
        ExportError: the bundle was not made from such a checkpoint.
    """
    with contextlib.closing(Checkpoint(checkpoint)) as source:
        config = read_language_config(source)
        source.check(language_weights(config.model, config.tied))
        _check_same(bundle, config.model, source)
        reference = LanguageReference(config.model, source.read, tied=config.tied)
        answer = _ask(bundle, config.model, reference, steps)
        precision = bundle.manifest.narrowest(LANGUAGE_GRAPHS)
        if precision == "fp32":
            return list(_compare(answer, reference, BOUNDS[precision], "fp32"))
        same = QuantizedLanguage(
            config.model,
            source.read,
            manifest_policy(bundle.manifest.recipe, f"bundle '{bundle.path}'"),
            tied=config.tied,
        )
        return [
            *_compare(answer, same, BOUNDS[precision], "same"),
            *_compare(answer, reference, COSTS[precision], "fp32"),
        ]


def _ask(bundle: Bundle, model: ModelConfig, reference: LanguageReference, steps: int) -> _Answer:
    pcm = load_audio(question(model.mel.sample_rate), model.mel.sample_rate, to_rate=model.mel.sample_rate)
    encoder = ClipEncoder(Encoder(bundle.runtime(), model), model, "full")
    encoder.feed(pcm)
    clip = encoder.finish()
    mel, placeholders = log_mel(pcm, model.mel), model.placeholder_count(len(pcm))
    # The reply is to the reference's rows, so that each stage stands for itself.
    rows = reference.encode(mel, placeholders)["grouped"]
    prompt, made, trace = trace_reply(bundle, Clip.of(rows.astype(np.float32), clip.seconds), steps)
    return _Answer(mel, placeholders, clip.rows, prompt, made, trace)


def _compare(answer: _Answer, reference: LanguageReference, bound: Bound, against: str) -> Iterator[Stage]:
    expected = reference.encode(answer.mel, answer.placeholders)["grouped"]
    for stage in (
        _stage("encoder rows", answer.rows, expected, bound.after(reference.model.encoder.num_layers)),
        *_compare_decoding(reference, answer, bound),
    ):
        yield dataclasses.replace(stage, against=against)


def _check_same(bundle: Bundle, expected: ModelConfig, source: Checkpoint) -> None:
    manifest = bundle.manifest
    if manifest.model is None:
        raise BundleError(f"bundle '{bundle.path}' has only a vocoder; compare it with --vocoder")
    different = []
    if manifest.model != expected:
        different.append("sizes and ids")
    texts = bundle.read_text(manifest.tokenizer), bundle.read_text(manifest.chat_template)
    different += [
        name
        for name, found, wanted in zip(
            ("tokenizer", "chat template"), texts, read_text_files(source, expected), strict=True
        )
        if found != wanted
    ]
    if different:
        raise ExportError(
            f"bundle '{bundle.path}' was not made from '{source.path}': other {', '.join(different)}; "
            "name the checkpoint that it was exported from"
        )


def _compare_decoding(reference: LanguageReference, answer: _Answer, bound: Bound) -> list[Stage]:
    model, prompt, trace = reference.model, answer.prompt, answer.trace
    rows, embedded = _input_rows(reference, model, prompt, answer.made)
    hidden = reference.backbone(rows)
    last = len(prompt) - 1
    head_input = hidden + embedded
    logits = reference.text_logits(hidden[last:])
    found = np.stack(trace.text_scores)
    layers = model.backbone.num_layers
    behind = bound.after(layers)
    stages = [
        _stage("backbone states", np.stack(trace.head_inputs), head_input[last:], behind),
        _stage("text scores", found, logits, behind, agreement=_agreement(found, logits)),
    ]
    if model.speech_head:
        previous = _previous_ids(model, len(prompt), trace.speech_picks)
        positions = reference.speech_positions(head_input)
        outputs = reference.speech_hidden(reference.speech_inputs(positions, previous))
        scores = reference.speech_logits(outputs[last * model.group_size :])
        found = np.stack(trace.speech_scores)
        behind = bound.after(layers + model.speech_head.num_layers)
        stages.append(_stage("speech scores", found, scores, behind, agreement=_agreement(found, scores)))
    return stages


def _input_rows(
    reference: LanguageReference, model: ModelConfig, prompt: Prompt, made: Sequence[Step]
) -> tuple[Array, Array]:
    """Rows that enter the backbone over prompt and reply, and their plain text embeddings, both [T, hidden]."""
    ids = np.concatenate([prompt.ids, [step.text_id for step in made[:-1]]]).astype(np.int64)
    embedded = reference.embed_text(ids)
    rows = embedded.copy()
    rows[prompt.audio_positions] = prompt.audio
    for n, step in enumerate(made[:-1]):
        if step.group is not None and (step.group != model.speech_ids.eos).all():
            at = len(prompt) + n
            rows[at] = (embedded[at] + reference.group_speech(step.group[None])[0]) / 2
    return rows, embedded


def _previous_ids(model: ModelConfig, prompt_length: int, picks: Sequence[int]) -> Array:
    """The id whose embedding joins each row of the speech head: BOS up to the last prompt position's first row."""
    bos = np.full((prompt_length - 1) * model.group_size + 1, model.speech_ids.bos)
    return np.concatenate([bos, picks[:-1]]).astype(np.int64)


def _agreement(found: Array, expected: Array) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _stage(name: str, found: Array, expected: Array, bound: Bound, agreement: float | None = None) -> Stage:
    if found.shape != expected.shape:
        return Stage(name, float("inf"), float("inf"), agreement, ok=False)
    difference = found.astype(np.float64) - expected
    relative = float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected)), 1e-30))
    enough = agreement is None or agreement >= bound.agreement
    return Stage(name, float(np.abs(difference).max()), relative, agreement, ok=relative <= bound.relative and enough)
