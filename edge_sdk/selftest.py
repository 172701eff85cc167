"""The self-test a bundle carries: a made-up question, and what the exporting machine answered to it.

Recorded at export, run by `edge-sdk verify` on the device: it shows that this machine, this runtime and these weights
give the same encoder rows, the same scores and tokens, and the same sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.backbone import BackboneOutput
from edge_sdk.context import Context
from edge_sdk.errors import BundleError
from edge_sdk.generation import Chooser, GenerationConfig, Generator, Step
from edge_sdk.manifest import FLOW_GRAPHS, LANGUAGE_GRAPHS, Manifest
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, Clip, Message, Prompt, Template
from edge_sdk.runtime import Array
from edge_sdk.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.config import ModelConfig, VocoderConfig

SEED = 20260
QUESTION_S = 3.0
STEPS = 12
# What two machines may differ by, norm of the difference over the norm. With float32 products only sums come in another
# order. Int8 and int4 weights are multiplied with int8 activations: the last bit of such a sum decides now and then
# which step a value is rounded to, and a step is a hundredth of it, in every layer behind: 0.1 after 64 layers of
# random weights (docs/NOTES.md). So these bounds find a wrong file or kernel, not a wrong digit; hashes find that.
_SUMS = {
    "rows": 1e-4,
    "text_scores": 1e-4,
    "speech_scores": 1e-4,
    "mel": 1e-4,
    "streamed_mel": 1e-4,
    "waveform": 1e-3,
}
_STEPS = {**_SUMS, "rows": 5e-2, "text_scores": 0.25, "speech_scores": 0.25, "mel": 0.15, "streamed_mel": 0.15}
TOLERANCES = {"fp32": _SUMS, "fp16": _SUMS, "int8": _STEPS, "int4": _STEPS}
SAME_CHOICES = 0.8  # the share of ids that scores within these tolerances must still pick, along the recorded reply
SAMPLES = 16  # values that are kept of each choice's scores and of each frame of a mel
LOUDNESS_TOLERANCE = 0.02  # of the RMS: samples are not comparable, since f0 errors integrate into the phase


def question(sample_rate: int) -> Array:
    """A seeded sound with voice-like partials and pauses, int16: the same samples on every machine."""
    rng = np.random.default_rng(SEED)
    n = int(QUESTION_S * sample_rate)
    t = np.arange(n) / sample_rate
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voice = np.sum([np.sin(k * phase) / k for k in range(1, 12)], axis=0)
    envelope = np.clip(np.sin(2 * np.pi * 1.5 * t), 0, 1)
    pcm = 0.15 * voice * envelope + 0.003 * rng.standard_normal(n)
    return np.asarray(np.round(pcm * 32767), np.int16)


class Trace(Chooser):
    """Picks as usual, and keeps what it picked from.

    Args:
        follow: {"text": ids, "speech": ids} picked before: these are taken, and what would have been picked is kept.
    """

    def __init__(self, *args: Any, follow: dict[str, list[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._follow = {kind: np.asarray(ids, np.int64) for kind, ids in (follow or {}).items()}
        self.text_picks: list[int] = []
        self.text_scores: list[Array] = []
        self.speech_scores: list[Array] = []
        self.speech_picks: list[int] = []
        self.head_inputs: list[Array] = []

    def speech_id(self, logits: Array, step: int, sub_step: int) -> int:
        self.speech_scores.append(logits.copy())
        number = self._number(step, sub_step, self.speech)
        self.speech_picks.append(self.speech.pick(logits, self.speech_history, number))
        return super().speech_id(logits, step, sub_step)

    def forced_speech(self, step: int) -> Array | None:
        ids = self._follow.get("speech", np.empty(0, np.int64))[step * self._size : (step + 1) * self._size]
        return ids if len(ids) == self._size else None

    def took(self, step: int, ids: Array, logits: Array) -> None:
        for j in range(len(ids)):  # the same choice once more, to keep what it was made from
            self.speech_id(logits[j], step, j)

    def text_id(self, output: BackboneOutput, step: int) -> int:
        self.text_scores.append(output.logits.copy())
        self.head_inputs.append(output.head_input[-1].copy())
        self.text_picks.append(super().text_id(output, step))
        follow = self._follow.get("text", ())
        return int(follow[step]) if step < len(follow) else self.text_picks[-1]


def trace_reply(
    bundle: Bundle, clip: Clip, steps: int, follow: dict[str, list[int]] | None = None
) -> tuple[Prompt, list[Step], Trace]:
    """The greedy reply to a clip, at most `steps` long, with every score it was chosen by; along the picks of
    `follow` if they are given."""
    model = bundle.manifest.model
    if model is None:
        raise BundleError(f"bundle '{bundle.path}' has no model to test")
    tokenizer = Tokenizer(bundle.read_text(bundle.manifest.tokenizer))
    template = Template(bundle.read_text(bundle.manifest.chat_template), tokenizer, model)
    system = SYSTEM_SPEECH if model.speech_head else SYSTEM_TEXT
    prompt = template.render([Message("system", ((system, True),)), Message("user", (clip,))])
    context = Context(bundle.runtime(), model, len(prompt) + steps, speech=model.speech_head is not None)
    output = context.prefill(prompt)
    if output is None:
        raise RuntimeError("nothing stops this prefill")  # a caller inside the package: not a user's mistake
    settings = GenerationConfig(max_new_tokens=steps, do_sample=False, seed=0)
    trace = Trace(model, settings, prompt_ids=prompt.ids.tolist(), bad_words=(), seed=0, turn=0, follow=follow)
    made = list(Generator(model, context.backbone, context.speech_head, settings, trace).steps(output))
    return prompt, made, trace


def record_selftest(bundle: Bundle, picks: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """Run the question through the bundle and return what `run_selftest` compares, as JSON.

    Args:
        picks: of a recorded self-test; scores are then those along its reply.
    """
    recorded: dict[str, Any] = {"seed": SEED, "steps": STEPS}
    if bundle.manifest.model:
        recorded |= _record_language(bundle, bundle.manifest.model, picks)
    if bundle.manifest.vocoder:
        recorded |= _record_vocoder(bundle, bundle.manifest.vocoder)
    return recorded


def _record_language(bundle: Bundle, model: ModelConfig, picks: dict[str, list[int]] | None) -> dict[str, Any]:
    """A conversation as a user has it, and the scores behind its choices."""
    from edge_sdk.chat import Chat

    config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, seed=SEED)
    with Chat(bundle, speech=model.speech_head is not None, generation=config, context_tokens=512) as chat:
        pcm = question(model.mel.sample_rate)
        rows = chat.encode(pcm, model.mel.sample_rate)
        reply = chat.send(pcm, sample_rate=model.mel.sample_rate)
    _, _, trace = trace_reply(bundle, Clip.of(rows, QUESTION_S), STEPS, picks)
    audio = reply.audio.astype(np.float64)
    return {
        "rows": _rounded(rows[:, :8]),
        "text_scores": _rounded(_sample(trace.text_scores)),
        "speech_scores": _rounded(_sample(trace.speech_scores)),
        "picks": {"text": [int(i) for i in trace.text_picks], "speech": [int(i) for i in trace.speech_picks]},
        "text_ids": list(reply.text_ids),
        "speech_ids": list(reply.speech_ids),
        "samples": len(reply.audio),
        "rms": float(np.sqrt((audio**2).mean())) if len(audio) else 0.0,
    }


def _record_vocoder(bundle: Bundle, config: VocoderConfig) -> dict[str, Any]:
    """Mel of made-up tokens, whole and streaming, and samples of a made-up mel: each part by itself, because sound from
    tokens is not comparable (what the mel differs by goes into the f0, and that into the phase)."""
    from edge_sdk.flow import Flow, FlowSettings, chunk_tokens
    from edge_sdk.flow_stream import FlowStream
    from edge_sdk.waveform import Waveform, WaveformStream

    runtime, rng = bundle.runtime(), np.random.default_rng(SEED)
    flow = Flow(runtime, config.flow, bundle.read_array(bundle.manifest.noise))
    speaker = rng.standard_normal(config.flow.speaker_dim).astype(np.float32)
    settings = FlowSettings(speaker, min(config.flow.steps), config.flow.cfg_rate, context_frames=None)
    ids = rng.integers(0, config.flow.codebook_size, chunk_tokens(config.flow) + config.flow.lookahead_tokens)
    stream = FlowStream(flow, settings)
    streamed = np.concatenate([stream.push(ids), stream.finish()])
    mel = np.repeat(rng.standard_normal((10, config.waveform.n_mels)), 5, axis=0).astype(np.float32) - 4
    waveform = WaveformStream(Waveform(runtime, config.waveform), config.flow.chunk_frames)
    pcm = np.concatenate([waveform.push(mel), waveform.finish()])
    return {
        "mel": _rounded(_sample(flow.whole(ids, settings))),
        "streamed_mel": _rounded(_sample(streamed)),
        "waveform": _rounded(pcm[:: max(1, len(pcm) // 1000)]),
    }


def _sample(rows: Array | list[Array]) -> Array:
    """[rows, SAMPLES]: of each row some values, evenly spread over it."""
    table = np.asarray(rows)
    if not len(table):
        return np.zeros((0, SAMPLES), np.float32)
    at = np.linspace(0, table.shape[1] - 1, SAMPLES).astype(np.int64)
    return table[:, at]


def _rounded(values: Array) -> list[float]:
    return [round(float(v), 6) for v in values.reshape(-1)]


def run_selftest(bundle: Bundle) -> dict[str, Any]:
    """Run the recorded question here. Returns what was compared; raises BundleError if something differs."""
    if not bundle.manifest.selftest:
        return {"selftest": "none recorded"}
    recorded = bundle.read_json(bundle.manifest.selftest)
    found = record_selftest(bundle, _picks(recorded, bundle.manifest.model))
    same_test = isinstance(recorded, dict) and set(recorded) == set(found)
    if not same_test or any(found.pop(key) != recorded[key] for key in ("seed", "steps")):
        raise BundleError(f"bundle '{bundle.path}': '{bundle.manifest.selftest}' is not a self-test of this version")
    judge = _Judge(bundle.manifest)
    for key, value in found.items():
        judge.compare(key, value, recorded[key])
    report, failures = judge.report, judge.failures
    if failures:
        raise BundleError(
            f"bundle '{bundle.path}' does not give on this machine what it gave where it was exported: "
            f"{', '.join(failures)}. Export it again here, or report this with the output of `edge-sdk doctor`"
        )
    return report


class _Judge:
    """Compares a self-test's values, each by the precision of the weights behind it."""

    def __init__(self, manifest: Manifest) -> None:
        self._language = manifest.narrowest(LANGUAGE_GRAPHS)
        self._flow = manifest.narrowest(FLOW_GRAPHS)
        # Two machines that round activations to steps may choose other ids, and then say other things.
        self._exact = TOLERANCES[self._language] is _SUMS
        self.report: dict[str, Any] = {}
        self.failures: list[str] = []

    def compare(self, key: str, found: Any, recorded: Any) -> None:
        if key in _SUMS:
            self._tolerance(key, found, recorded)
        elif key == "picks":
            share = self.report["same_choices"] = _share(found, recorded)
            if not share >= SAME_CHOICES:
                self.failures.append(f"only {100 * share:.0f} % of the choices are the same")
        elif key == "rms":
            ratio = self.report["rms_ratio"] = _ratio(found, recorded)
            if self._exact and not abs(ratio - 1) <= LOUDNESS_TOLERANCE:
                self.failures.append(f"rms is {ratio:.3f} times as large (1 within {LOUDNESS_TOLERANCE})")
        else:
            self.report[f"{key}_equal"] = found == recorded
            if self._exact and found != recorded:
                self.failures.append(f"{key} are others")

    def _tolerance(self, key: str, found: list[float], recorded: Any) -> None:
        precision = self._flow if key in ("mel", "streamed_mel") else self._language
        tolerance = TOLERANCES[precision][key]
        error = self.report[f"{key}_error"] = _relative(found, recorded)
        if not error <= tolerance:
            self.failures.append(f"{key} differ by {error:.2e} (at most {tolerance:.0e})")


def _picks(recorded: Any, model: ModelConfig | None) -> dict[str, list[int]] | None:
    """The ids to follow, None if the file, which may hold anything, has none that this model could pick."""
    picks = recorded.get("picks") if isinstance(recorded, dict) else None
    if model is None or not isinstance(picks, dict) or set(picks) != {"text", "speech"}:
        return None
    sizes = {"text": model.text_ids.vocab_size, "speech": model.speech_ids.codebook_size}
    for kind, ids in picks.items():
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < sizes[kind] for i in ids):
            return None
    return picks


def _share(found: dict[str, list[int]], recorded: Any) -> float:
    """Of the choices along the recorded reply, how many are the recorded ones; 0 if the two cannot be compared."""
    try:
        pairs = [pair for kind, ids in found.items() for pair in zip(ids, recorded[kind], strict=True)]
    except (TypeError, KeyError, ValueError):
        return 0.0
    same = [int(a == b) for a, b in pairs]
    return sum(same) / max(1, len(same))


def _relative(found: list[float], recorded: Any) -> float:
    """Norm of the difference over the norm; infinite if the two cannot be compared."""
    try:
        a, b = np.asarray(found), np.asarray(recorded, np.float64)
    except (TypeError, ValueError):
        return float("inf")
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


def _ratio(found: float, recorded: Any) -> float:
    if found == recorded:
        return 1.0
    return found / recorded if isinstance(recorded, float) and recorded else float("inf")
