"""Measurements behind `edge-sdk bench`: every stage beside the physical limit of the same machine in the same run.

The limit of a decode step is (bytes of weights + bytes of cache it must read) / read bandwidth; times of one run are
comparable with each other and with that run's bandwidth, not with times of another run.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.config import ModelConfig
from edge_sdk.context import Context
from edge_sdk.encoder import Encoder
from edge_sdk.errors import BundleError
from edge_sdk.generation import Chooser, GenerationConfig, Generator
from edge_sdk.mel import log_mel
from edge_sdk.prompt import Prompt
from edge_sdk.runtime import Array
from edge_sdk.selftest import question
from edge_sdk.timed_runtime import TimedRuntime

PROBE_BYTES = 256 << 20
PROBE_CHUNK = 16 << 20
REPEATS = 5
EDGE_STEPS = 100  # steps at either end of a long reply that are compared


@dataclass(frozen=True)
class StageTime:
    """One stage: milliseconds of a run, the least this machine's memory allows, and what the run stands for."""

    stage: str
    ms: float
    p95_ms: float
    limit_ms: float | None  # None where arithmetic, not memory, sets the limit
    sound_ms: float | None  # sound that one run makes or takes

    @property
    def over_limit(self) -> float | None:
        return self.ms / self.limit_ms if self.limit_ms else None

    @property
    def rtf(self) -> float | None:
        return self.ms / self.sound_ms if self.sound_ms else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "over_limit": self.over_limit, "rtf": self.rtf}


def read_bandwidth(threads: int, repeats: int = REPEATS) -> float:
    """Bytes a second that `threads` can read together from memory: the best of several passes over 256 MiB each."""
    blocks = [np.ones(PROBE_BYTES // 4, np.float32) for _ in range(threads)]
    chunk = PROBE_CHUNK // 4

    def read(block: Array) -> None:
        for at in range(0, len(block), chunk):
            block[at : at + chunk].max()

    best = 0.0
    for _ in range(repeats):
        workers = [threading.Thread(target=read, args=(block,)) for block in blocks]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, threads * PROBE_BYTES / (time.perf_counter() - began))
    return best


def bench(
    bundle: Bundle,
    *,
    runtime: str = "auto",
    threads: int | None = None,
    steps: int = 1000,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure a bundle. Returns machine, stages, overhead and a whole reply, as JSON.

    Args:
        steps: decode steps of the overhead measurement.
    """
    model = bundle.manifest.model
    if model is None:
        raise BundleError(f"bundle '{bundle.path}' has only a vocoder; there is nothing to decode")
    opened = bundle.runtime(runtime, threads=threads)
    used = getattr(opened, "threads", 1)
    report("memory bandwidth", 0, 5)
    bandwidth = read_bandwidth(used)
    timed = TimedRuntime(opened)
    report("encoder and prefill", 1, 5)
    stages = [*_front_stages(timed, model), *_prefill_stages(timed, model)]
    report("decode steps", 2, 5)
    decode, overhead = _decode_stages(bundle, timed, model, steps, bandwidth)
    stages += decode
    report("vocoder", 3, 5)
    stages += _vocoder_stages(bundle, runtime, threads)
    report("a whole reply", 4, 5)
    reply = _whole_reply(bundle, model, runtime, threads)
    report("done", 5, 5)
    return {
        "bundle": bundle.name,
        "runtime": opened.name,
        "threads": used,
        "read_gb_s": bandwidth / 1e9,
        "stages": [stage.to_json() for stage in stages],
        "overhead": overhead,
        "reply": reply,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _times(run: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float]:
    """Median and 95th percentile in ms, after one run to warm up."""
    run()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return _ms(found)


def _ms(seconds: Any) -> tuple[float, float]:
    p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return float(p50), float(p95)


def _front_stages(timed: TimedRuntime, model: ModelConfig) -> list[StageTime]:
    pcm = question(model.mel.sample_rate)
    seconds = len(pcm) / model.mel.sample_rate
    mel_ms = _times(lambda: log_mel(pcm, model.mel))
    encoder = Encoder(timed, model)
    window = log_mel(pcm, model.mel)[:, : model.encoder.window_frames]
    window_ms = 1e3 * window.shape[1] * model.mel.hop_samples / model.mel.sample_rate
    encode_ms = _times(lambda: encoder.window(window, encoder.start()))
    return [
        StageTime("mel", *mel_ms, None, 1e3 * seconds),
        StageTime("encoder window", *encode_ms, None, window_ms),
    ]


def _prompt(model: ModelConfig, positions: int) -> Prompt:
    nothing = np.zeros(0, np.int64)
    ids = np.resize(np.arange(model.text_ids.vocab_size // 2, dtype=np.int64), positions)
    rows = np.zeros((0, model.backbone.hidden_size), np.float32)
    return Prompt(ids, rows, nothing, np.zeros(positions, np.int64))


def _prefill_stages(timed: TimedRuntime, model: ModelConfig) -> list[StageTime]:
    positions = 128
    context = Context(timed, model, positions, speech=model.speech_head is not None)
    prompt = _prompt(model, positions)

    def run() -> None:
        context.reset()
        context.prefill(prompt)

    return [StageTime(f"prefill of {positions}", *_times(run), None, positions * model.step_ms)]


def _decode_stages(
    bundle: Bundle, timed: TimedRuntime, model: ModelConfig, steps: int, bandwidth: float
) -> tuple[list[StageTime], dict[str, Any]]:
    """A long greedy reply whose text never ends: steps beside the limit, and what is spent outside the sessions."""
    prompt = _prompt(model, 16)
    context = Context(timed, model, len(prompt) + steps + 1, speech=model.speech_head is not None)
    output = context.prefill(prompt)
    if output is None:
        raise BundleError("the prefill was interrupted")
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, seed=0)
    chooser = _Endless(model, config, prompt_ids=prompt.ids.tolist(), bad_words=(), seed=0, turn=0)
    generator = Generator(model, context.backbone, context.speech_head, config, chooser)
    outside, before = [], timed.total_s
    began = time.perf_counter()
    for _ in generator.steps(output):
        now = time.perf_counter()
        outside.append(now - began - (timed.total_s - before))
        began, before = now, timed.total_s
    skip = min(5, len(outside) - 1)
    times = generator.times
    filled = len(prompt) + steps // 2  # half of the reply is in the caches on average
    stages = [
        StageTime(
            "backbone step",
            *_ms(times.backbone_s[skip:]),
            1e3 * _step_bytes(bundle, "backbone", model.backbone.cache_values_per_position, filled) / bandwidth,
            model.step_ms,
        )
    ]
    head = context.speech_head
    if head:
        cache = head.nbytes * filled * model.group_size // head.cache.capacity
        group = model.group_size * (bundle.manifest.graphs["speech_head"].bytes_read + cache)
        group += bundle.manifest.graphs["speech_input"].bytes_read
        limit = 1e3 * group / bandwidth
        stages.append(StageTime("speech head group", *_ms(times.speech_head_s[skip:]), limit, model.step_ms))
    edge = min(EDGE_STEPS, max(1, len(outside) // 3))
    first, last = (float(np.median(part)) * 1e3 for part in (outside[skip : skip + edge], outside[-edge:]))
    overhead = {
        "steps": len(outside),
        "outside_sessions_ms": _ms(outside[skip:])[0],
        "first_steps_ms": first,
        "last_steps_ms": last,
        "growth": last / first,
    }
    return stages, overhead


class _Endless(Chooser):
    """Greedy, but never an end-of-text and never an end-of-speech: the reply goes on for as many steps as asked."""

    def __init__(self, model: ModelConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._model = model

    def forced_speech(self, step: int) -> Array | None:
        return np.zeros(self._model.group_size, np.int64)

    def text_id(self, output: Any, step: int) -> int:
        picked = super().text_id(output, step)
        return picked if picked not in self._model.text_ids.eos else self._model.text_ids.audio_bos


def _step_bytes(bundle: Bundle, graph: str, cache_values: int, positions: int) -> int:
    return bundle.manifest.graphs[graph].bytes_read + 4 * cache_values * positions


def _vocoder_stages(bundle: Bundle, runtime: str, threads: int | None) -> list[StageTime]:
    if bundle.manifest.vocoder is None:
        return []
    from edge_sdk.vocoder import Vocoder

    flow = bundle.manifest.vocoder.flow
    vocoder = Vocoder(bundle, runtime=runtime, threads=threads)
    chunk = flow.chunk_frames // flow.frames_per_token
    ids = np.arange(chunk, dtype=np.int64) % flow.codebook_size
    stream = vocoder.stream()
    stream.push(np.concatenate([ids, ids[: flow.lookahead_tokens]]))
    flow_s, waveform_s = [], []
    for _ in range(3 * REPEATS):
        before = stream.flow_s, stream.waveform_s
        stream.push(ids)
        flow_s.append(stream.flow_s - before[0])
        waveform_s.append(stream.waveform_s - before[1])
    stream.close()
    sound_ms = 1e3 * chunk / flow.token_rate_hz
    return [
        StageTime("flow chunk", *_ms(flow_s), None, sound_ms),
        StageTime("waveform chunk", *_ms(waveform_s), None, sound_ms),
    ]


def _whole_reply(bundle: Bundle, model: ModelConfig, runtime: str, threads: int | None) -> dict[str, Any]:
    """A spoken question, streamed in as it would be spoken, answered with 10 s of speech at most."""
    pcm = question(model.mel.sample_rate)
    config = GenerationConfig.of_bundle(bundle).replace(max_new_tokens=51, seed=0)
    speech = model.speech_head is not None
    with Chat(bundle, runtime=runtime, threads=threads, speech=speech, generation=config, context_tokens=512) as chat:
        chat.send(pcm, sample_rate=model.mel.sample_rate, generation=config.replace(max_new_tokens=8))
        chat.reset()
        turn = chat.begin_turn(model.mel.sample_rate)
        for at in range(0, len(pcm), model.mel.sample_rate // 10):
            turn.feed(pcm[at : at + model.mel.sample_rate // 10])
        with turn.finish() as events:
            for _ in events:
                pass
    if events.reply is None:
        raise BundleError("the reply ended without a result")
    timings = events.reply.timings
    return {**asdict(timings), "rtf": timings.rtf, "finish_reason": events.reply.finish_reason}
