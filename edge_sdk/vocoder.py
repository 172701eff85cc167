"""Vocoder: speech tokens -> 24 kHz PCM, in one piece or as they come.

    voice = edge_sdk.Vocoder("model.bundle")
    pcm = voice.synthesize(speech_ids)
    part = voice.stream()
    for ids in source:
        play(part.push(ids))
    play(part.finish())

Two modes over the same graphs. "streaming" (the default): the trained chunk mask; sound comes after 28 tokens, then
every 25, each second costs the same, and nothing already given changes. "whole": every frame sees every other in a
segment of up to 30 s, as upstream's offline helper does it. Token counts are the released model's.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
import time
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.checks import check_cfg_rate, check_whole
from edge_sdk.config import FlowConfig, VocoderConfig
from edge_sdk.errors import BundleError, Error
from edge_sdk.flow import Flow, FlowSettings
from edge_sdk.flow_stream import FlowStream
from edge_sdk.generation import GenerationConfig
from edge_sdk.runtime import Array, Runtime
from edge_sdk.vocoder_input import check_ids, check_preview, check_speaker, context_frames
from edge_sdk.waveform import Waveform, WaveformStream

MODES = ("streaming", "whole")
_SEGMENT_S, _SHORT_SEGMENT_S = 30.0, 2.0  # upstream's offline helper: 750 tokens, and a tail under 50 is joined

_T = TypeVar("_T")


class VocoderStream(Protocol):
    """One utterance. Calls from several threads wait for each other; several streams may run side by side.

    Attributes:
        flow_s, waveform_s: seconds spent so far in either part.
        nbytes: memory of the stream's caches.
    """

    flow_s: float
    waveform_s: float
    nbytes: int

    def push(self, ids: Any) -> Array:
        """More speech tokens -> the PCM that is ready now, float32 [n], perhaps empty.

        Raises:
            Error: an id that is no speech token (nothing is taken, the stream goes on), or the stream is over.
        """

    def finish(self) -> Array:
        """The rest of the PCM; the stream is over."""

    def close(self) -> None:
        """Give the stream up without its rest. No effect on a finished one."""


class Vocoder:
    """The vocoder of a bundle with one voice. Threads may share it; engines and weights are the bundle's."""

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        voice: str | Any | None = None,
        mode: str = "streaming",
        steps: int | None = None,
        cfg_rate: float | None = None,
        context_s: float | None = 6.0,
        *,
        preview_tokens: int = 0,
        runtime: str = "auto",
        threads: int | None = None,
        device_id: int = 0,
    ) -> None:
        """
        Args:
            bundle: an open bundle, or the path of one.
            voice: a voice's name, a speaker embedding float [speaker_dim], or None for the bundle's default voice.
            mode: "streaming" or "whole".
            steps: Euler steps of the flow; one of those the bundle has tables for. None: the bundle's own, as `Chat`
                takes it (`GenerationConfig.of_bundle`); 10 where it says none.
            cfg_rate: strength of classifier-free guidance, from 0 (off) to 100. None: the bundle's own, 0.7 for the
                released vocoder. A vocoder whose own is 0 was exported without guidance: no rate has an effect there.
            context_s: seconds of earlier sound that the streaming flow keeps seeing, rounded up to its blocks. None
                keeps all, which is exact and takes memory for every second (`VocoderStream.nbytes`).
            preview_tokens: streaming only: give the sound of so many first tokens without waiting for their block of
                25, which brings the first sound forward by the difference. Not exact: where the preview ends, the
                sound goes on as the whole block has it (docs/vocoder.md has the size of that seam). 0: off.
            runtime, threads, device_id: as in `Bundle.runtime`.

        Raises:
            BundleError: the bundle has no vocoder or no such voice.
            Error: another argument does not fit.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        config = opened.manifest.vocoder
        if config is None or not opened.manifest.noise:
            raise BundleError(f"bundle '{opened.path}' has no vocoder: it makes text and speech tokens only")
        if not isinstance(mode, str) or mode not in MODES:
            raise Error(f"vocoder mode must be one of {', '.join(MODES)}, found {mode!r}")
        self.mode = mode
        own = GenerationConfig.of_bundle(opened)
        steps = own.vocoder_steps if steps is None else steps
        cfg_rate = own.cfg_rate if cfg_rate is None else cfg_rate
        self._bundle, self._config = opened, config
        self._settings = FlowSettings(
            speaker=self._speaker(voice),
            steps=check_whole("steps", steps, 1),
            cfg_rate=check_cfg_rate("cfg_rate", cfg_rate),
            context_frames=context_frames(context_s, config.flow),
            preview_tokens=check_preview(preview_tokens, config.flow),
        )
        engines = opened.runtime(runtime, threads=threads, device_id=device_id)
        self._flow, self._waveform = opened.shared(("vocoder", engines), partial(_open_parts, opened, config, engines))
        self._flow.step_rows(self._settings.steps)  # an unknown step count is an error now, not at the first sound
        self._pool = _Pool()

    def with_settings(self, *, steps: int, cfg_rate: float) -> Vocoder:
        """This vocoder with another step count or guidance: the same engines and memory, checked the same way."""
        steps, cfg_rate = check_whole("steps", steps, 1), check_cfg_rate("cfg_rate", cfg_rate)
        if (steps, cfg_rate) == (self._settings.steps, self._settings.cfg_rate):
            return self
        self._flow.step_rows(steps)
        other = copy.copy(self)
        other._settings = dataclasses.replace(self._settings, steps=steps, cfg_rate=cfg_rate)
        return other

    def with_voice(self, voice: str | Any | None) -> Vocoder:
        """This vocoder with another voice, given as when it was opened: the same engines."""
        other = copy.copy(self)
        other._settings = dataclasses.replace(self._settings, speaker=self._speaker(voice))
        other._pool = _Pool()  # what lies in the other's was made for its voice
        return other

    def _speaker(self, voice: str | Any | None) -> Array:
        chosen = self._bundle.voice(voice) if voice is None or isinstance(voice, str) else voice
        return check_speaker(chosen, self._config.flow.speaker_dim)

    @property
    def sample_rate(self) -> int:
        return self._config.waveform.sample_rate

    @property
    def samples_per_token(self) -> int:
        return self._config.flow.frames_per_token * self._config.waveform.samples_per_frame

    @property
    def codebook_size(self) -> int:
        """Speech tokens are ids below this."""
        return self._config.flow.codebook_size

    def synthesize(self, ids: Any) -> Array:
        """All of an utterance: ids int [T] -> PCM float32 [T * samples_per_token]. No tokens give no samples.

        Raises:
            Error: an id that is no speech token; the object stays usable.
        """
        stream = self.stream()
        try:
            return np.concatenate([stream.push(ids), stream.finish()])
        finally:
            stream.close()

    def stream(self) -> VocoderStream:
        """A new utterance. In mode "whole" sound comes only when a segment of 30 s is complete, or at the end."""
        return _IncrementalStream(self) if self.mode == "streaming" else _SegmentStream(self)


def _open_parts(bundle: Bundle, config: VocoderConfig, runtime: Runtime) -> tuple[Flow, Waveform]:
    """Shared by every vocoder of a bundle on one runtime: they hold no state of an utterance."""
    flow = Flow(runtime, config.flow, bundle.read_array(bundle.manifest.noise))
    return flow, Waveform(runtime, config.waveform)


@dataclasses.dataclass
class _Parts:
    """What one streaming utterance owns."""

    flow: FlowStream
    waveform: WaveformStream

    @property
    def nbytes(self) -> int:
        return self.flow.nbytes + self.waveform.nbytes


class _Pool:
    """Keeps the memory of the last finished stream for the next one: fresh pages cost more than the first chunk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: tuple[tuple[int, float], _Parts] | None = None

    def take(self, vocoder: Vocoder) -> _Parts:
        settings = vocoder._settings
        with self._lock:
            idle, self._idle = self._idle, None
        if idle and idle[0] == (settings.steps, settings.cfg_rate):
            return idle[1]
        del idle  # let go of it before as much is allocated again
        return _Parts(FlowStream(vocoder._flow, settings), _waveform_stream(vocoder))

    def give_back(self, vocoder: Vocoder, parts: _Parts) -> None:
        if vocoder._settings.context_frames is None:
            return  # it may have grown to any size
        parts.flow.reset()
        parts.waveform.reset()
        with self._lock:
            self._idle = ((vocoder._settings.steps, vocoder._settings.cfg_rate), parts)


def _waveform_stream(vocoder: Vocoder) -> WaveformStream:
    return WaveformStream(vocoder._waveform, vocoder._config.flow.chunk_frames)


class _IncrementalStream:
    def __init__(self, vocoder: Vocoder) -> None:
        self._vocoder = vocoder
        self._lock = threading.RLock()  # parts in use do not go to another utterance
        self._parts: _Parts | None = vocoder._pool.take(vocoder)
        self.nbytes = self._parts.nbytes
        self.flow_s = self.waveform_s = 0.0

    def push(self, ids: Any) -> Array:
        checked = check_ids(ids, self._vocoder.codebook_size)
        with self._lock:
            parts = _not_over(self._parts)
            begin = time.perf_counter()
            mel = parts.flow.push(checked)
            return self._voice(parts, mel, begin)

    def finish(self) -> Array:
        with self._lock:
            parts = _not_over(self._parts)
            begin = time.perf_counter()
            mel = parts.flow.finish()
            pcm = self._voice(parts, mel, begin, last=True)
            self.close()
            return pcm

    def _voice(self, parts: _Parts, mel: Array, begin: float, *, last: bool = False) -> Array:
        middle = time.perf_counter()
        pcm = parts.waveform.push(mel)
        if last:
            pcm = np.concatenate([pcm, parts.waveform.finish()])
        self.flow_s += middle - begin
        self.waveform_s += time.perf_counter() - middle
        self.nbytes = parts.nbytes
        return pcm

    def close(self) -> None:
        with self._lock:
            parts, self._parts = self._parts, None
            if parts:
                self._vocoder._pool.give_back(self._vocoder, parts)


class _SegmentStream:
    """Mode "whole": independent segments, each as soon as the tokens show where it ends."""

    nbytes = 0

    def __init__(self, vocoder: Vocoder) -> None:
        self._vocoder = vocoder
        self._limit, self._short = segment_limits(vocoder._config.flow)
        self._lock = threading.RLock()
        self._pending: Array | None = np.empty(0, np.int64)
        self.flow_s = self.waveform_s = 0.0

    def push(self, ids: Any) -> Array:
        checked = check_ids(ids, self._vocoder.codebook_size)
        with self._lock:
            pending = np.concatenate([_not_over(self._pending), checked])
            done = [np.empty(0, np.float32)]
            while len(pending) >= self._limit + self._short:
                done.append(self._segment(pending[: self._limit]))
                pending = pending[self._limit :]
            self._pending = pending
            return np.concatenate(done)

    def finish(self) -> Array:
        with self._lock:
            pending = _not_over(self._pending)
            self.close()
            done, at = [np.empty(0, np.float32)], 0
            for length in segment_lengths(len(pending), self._limit, self._short):
                done.append(self._segment(pending[at : at + length]))
                at += length
            return np.concatenate(done)

    def _segment(self, ids: Array) -> Array:
        begin = time.perf_counter()
        mel = self._vocoder._flow.whole(ids, self._vocoder._settings)
        middle = time.perf_counter()
        waveform = _waveform_stream(self._vocoder)
        pcm = np.concatenate([waveform.push(mel), waveform.finish()])
        self.flow_s += middle - begin
        self.waveform_s += time.perf_counter() - middle
        return pcm

    def close(self) -> None:
        with self._lock:
            self._pending = None


def _not_over(state: _T | None) -> _T:
    if state is None:
        raise Error("this vocoder stream is finished; begin another with Vocoder.stream()")
    return state


def segment_limits(config: FlowConfig) -> tuple[int, int]:
    """Tokens of a segment, and tokens under which a last segment is joined to the one before."""
    most = config.noise_frames // config.frames_per_token
    limit = min(int(_SEGMENT_S * config.token_rate_hz), most)
    return limit, min(int(_SHORT_SEGMENT_S * config.token_rate_hz), limit)


def segment_lengths(tokens: int, limit: int, short: int) -> list[int]:
    """How upstream's offline helper cuts: full segments; a short tail is joined to the last one and the two halved."""
    lengths = [limit] * (tokens // limit) + [tokens % limit] * (tokens % limit > 0)
    if len(lengths) > 1 and lengths[-1] < short:
        joined = lengths.pop() + lengths.pop()
        lengths += [joined // 2, joined - joined // 2]
    return lengths
