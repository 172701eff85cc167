"""Whisper's log-mel, in pieces or at once, bit for bit the same.

The reference pads the clip with zeros to `max_samples` (30 s) or cuts it there, mirrors n_fft / 2 samples at both
edges of that block, takes the power spectrum under a periodic Hann window, applies Slaney mel filters, and clamps
log10 at 8 below the maximum of the block (transformers' WhisperFeatureExtractor). A frame is final once its samples
are there; only the clamp, one number, waits for the end. So raw frames stream out and the clamp is explicit state.

Every step works on each frame alone (no matrix product, whose rounding may depend on how many rows it is given):
that is what makes any cutting of the input give identical float32 values.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from edge_sdk.audio import check_pcm
from edge_sdk.config import MelConfig
from edge_sdk.errors import AudioError, Error

LongAudio = Literal["full", "upstream"]
Array = np.ndarray[Any, Any]

_SMALLEST_POWER = 1e-10
_RANGE = np.float32(8.0)  # log10 units kept below the maximum
_BLOCK_FRAMES = 256  # frames computed at once: bounds the memory of a long clip


@dataclass(frozen=True, eq=False)
class RawMel:
    """Frames before the clamp. `start` is the first frame's number, `values` float32 [n_mels, frames] (log10)."""

    start: int
    values: Array

    @cached_property
    def min_value(self) -> float:
        """The smallest value, infinity if there are no frames: below a floor, the floor shows."""
        return float(self.values.min(initial=np.inf))

    def normalize(self, floor: float) -> Array:
        """The encoder's input under this floor, float32 [n_mels, frames]."""
        return (np.maximum(self.values, np.float32(floor)) + np.float32(4.0)) / np.float32(4.0)

    def changes(self, old_floor: float, new_floor: float) -> bool:
        """Whether `normalize` gives something else under the new floor."""
        return changes(self.min_value, old_floor, new_floor)


def changes(min_value: float, old_floor: float, new_floor: float) -> bool:
    """Whether frames whose smallest raw value is `min_value` look different under another floor."""
    return old_floor != new_floor and min_value < max(old_floor, new_floor)


def log_mel(pcm: Any, config: MelConfig, long_audio: LongAudio = "full") -> Array:
    """A whole clip, mono at `config.sample_rate` -> float32 [n_mels, frames], frames = ceil(samples / hop).

    Args:
        long_audio: what happens past `max_samples` (30 s). "full": all frames are made, the clamp follows the maximum
            of the whole clip. "upstream": they are silently dropped, as the reference does. Equal for shorter clips.

    Raises:
        AudioError: PCM that is not finite or not mono float32, float64 or int16.
    """
    stream = MelStream(config, long_audio)
    stream.feed(pcm)
    stream.finish()
    return stream.take().normalize(stream.floor)


class MelStream:
    """Log-mel of a clip that is still arriving.

    `feed` PCM in pieces of any size, `take` raw frames as they become final, `finish` once; `floor` is the clamp as
    far as it is known, and only rises. Frames wait here until taken; of the PCM only the last frame's worth is kept.
    """

    def __init__(self, config: MelConfig, long_audio: LongAudio = "full") -> None:
        if long_audio not in ("full", "upstream"):
            raise Error(f"long_audio is {long_audio!r}; use 'full' or 'upstream'")
        self.config = config
        self._cut = long_audio == "upstream"
        self._analysis = _analysis(config)
        self._half = config.n_fft // 2
        self._tail = np.empty(0, np.float32)  # PCM from the next frame's first sample on
        self._began = False  # the left edge is mirrored: that needs the first n_fft / 2 + 1 samples
        self._computed = 0
        self._taken = 0
        self._raw: deque[Array] = deque()  # blocks [frames, n_mels] not taken yet
        self._maximum = np.float32(np.log10(_SMALLEST_POWER))
        self._finished = False
        self.samples = 0  # fed so far, those past an upstream cut included

    @property
    def ready(self) -> int:
        """Frames that are final and not taken yet."""
        return self._computed - self._taken

    @property
    def floor(self) -> float:
        """The clamp under the maximum so far (log10); final after `finish`."""
        return float(self._maximum - _RANGE)

    @property
    def finished(self) -> bool:
        return self._finished

    def feed(self, pcm: Any) -> None:
        """Append mono PCM [n] at the config's rate.

        Raises:
            AudioError: the piece is refused whole (see `check_pcm`); the stream goes on as if it had not been fed.
        """
        if self._finished:
            raise AudioError("this clip was finished; open a new stream for more")
        piece = check_pcm(pcm)
        room = max(self.config.max_samples - self.samples, 0) if self._cut else len(piece)
        self._append(piece[:room])
        self.samples += len(piece)
        self._keep(self._compute(self._available()))

    def finish(self) -> None:
        """Compute the last frames, as if zeros followed, and complete the maximum. Nothing can be fed after this."""
        if self._finished:
            raise AudioError("this clip was finished already")
        self._finished = True
        samples = min(self.samples, self.config.max_samples) if self._cut else self.samples
        if samples == 0:
            return
        hop, limit = self.config.hop_samples, self.config.max_samples
        valid, touched = -(-samples // hop), -(-(samples + self._half) // hop)
        if samples <= limit:
            touched = min(touched, limit // hop)
        self._pad(samples, touched)
        block = self._compute(touched - self._computed)
        # Frames past the valid ones hold the end of the sound as well: they count for the maximum and nothing else.
        self._raise_maximum(block)
        self._keep(block[: valid - self._computed])

    def copy(self) -> MelStream:
        """The same clip once more: what is fed to one is not fed to the other."""
        twin = copy.copy(self)  # arrays are replaced and never written into, so they can be shared
        twin._raw = self._raw.copy()
        return twin

    def take(self, frames: int | None = None) -> RawMel:
        """Remove the next `frames` raw frames (all that are ready if None) and return them."""
        count = self.ready if frames is None else frames
        if not 0 <= count <= self.ready:
            raise Error(f"{frames} mel frames were asked for, {self.ready} are ready")
        parts = [np.empty((0, self.config.n_mels), np.float32)]
        start, self._taken = self._taken, self._taken + count
        while count:
            block = self._raw.popleft()
            parts.append(block[:count])
            count -= len(parts[-1])
            if len(parts[-1]) < len(block):
                self._raw.appendleft(block[len(parts[-1]) :])
        return RawMel(start, np.ascontiguousarray(np.concatenate(parts).T))

    def _append(self, piece: Array) -> None:
        self._tail = np.concatenate([self._tail, piece])
        if not self._began and len(self._tail) > self._half:
            self._tail = np.concatenate([self._tail[self._half : 0 : -1], self._tail])
            self._began = True

    def _available(self) -> int:
        """Frames whose samples are all in the tail."""
        if not self._began or len(self._tail) < self.config.n_fft:
            return 0
        return 1 + (len(self._tail) - self.config.n_fft) // self.config.hop_samples

    def _pad(self, samples: int, frames: int) -> None:
        """Extend the tail so that `frames` frames can be computed: zeros, past the end of the block mirrored."""
        if not self._began:
            missing = self._half + 1 - samples
            self._append(np.zeros(missing, np.float32))
            samples += missing
        need = (frames - self._computed - 1) * self.config.hop_samples + self.config.n_fft - len(self._tail)
        zeros = max(need, 0)
        if samples <= self.config.max_samples:
            zeros = min(zeros, self.config.max_samples - samples)
        self._append(np.zeros(zeros, np.float32))
        if need > zeros:
            self._append(self._tail[-2 : -2 - (need - zeros) : -1])

    def _compute(self, count: int) -> Array:
        """The next `count` raw frames, float32 [count, n_mels]; the tail moves on."""
        config = self.config
        blocks = [np.empty((0, config.n_mels), np.float32)]
        if count <= 0:
            return blocks[0]
        for at in range(0, count, _BLOCK_FRAMES):
            frames = min(_BLOCK_FRAMES, count - at)
            begin = at * config.hop_samples
            end = begin + (frames - 1) * config.hop_samples + config.n_fft
            overlapping = np.ndarray(
                (frames, config.n_fft), np.float32, self._tail[begin:end], strides=(4 * config.hop_samples, 4)
            )
            blocks.append(self._analysis.raw(overlapping))
        self._tail = self._tail[count * config.hop_samples :].copy()  # a view would keep the whole clip alive
        return np.concatenate(blocks)

    def _keep(self, block: Array) -> None:
        if len(block):
            self._raise_maximum(block)
            self._computed += len(block)
            self._raw.append(block)

    def _raise_maximum(self, block: Array) -> None:
        self._maximum = block.max(initial=self._maximum)


class _Analysis:
    """Frames of PCM -> raw log-mel, each frame alone. Holds the window and the filters of one config."""

    def __init__(self, config: MelConfig) -> None:
        n, hop, limit = config.n_fft, config.hop_samples, config.max_samples
        if n < 2 or n % 2 or not 0 < hop <= n // 2 or limit <= n or limit % hop or config.n_mels < 1:
            raise Error(
                "the mel needs an even n_fft, hop_samples of at most half of it, and max_samples above n_fft that "
                f"divide into hops; got {config}"
            )
        self._window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)
        # All filters at once are two sums over runs of bins; runs without a bin (at low frequencies) are left out.
        run, self._rise, self._fall = slaney_filters(config.n_mels, n, config.sample_rate)
        self._starts = np.flatnonzero(np.diff(run, prepend=-1))
        self._runs, self._n_mels = run[self._starts], config.n_mels

    def raw(self, frames: Array) -> Array:
        """float32 [count, n_fft] -> log10 mel power, float32 [count, n_mels], not clamped from above."""
        spectrum = np.fft.rfft(frames * self._window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        mel = np.zeros((len(frames), self._n_mels + 2))  # filter m in column m + 1, one column to spare at each end
        mel[:, self._runs + 1] = np.add.reduceat(power * self._rise, self._starts, axis=1)
        mel[:, self._runs] += np.add.reduceat(power * self._fall, self._starts, axis=1)
        return np.log10(np.maximum(mel[:, 1:-1], _SMALLEST_POWER)).astype(np.float32)


@lru_cache(maxsize=8)
def _analysis(config: MelConfig) -> _Analysis:
    return _Analysis(config)


def slaney_filters(n_mels: int, n_fft: int, sample_rate: int) -> tuple[Array, Array, Array]:
    """Slaney's triangular mel filters from 0 to half the sample rate, each of area 1 (in Hz), in sparse form.

    Returns:
        (run, rise, fall), each [n_fft / 2 + 1]. The filters' edges and centres are n_mels + 2 points, filter m rising
        from point m to m + 1 and falling to m + 2. Bin k lies between the points run[k] and run[k] + 1, so it has
        a part in two filters at most: rise[k] in filter run[k], fall[k] in filter run[k] - 1.
    """
    points = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2))
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    run = np.clip(np.searchsorted(points, bins, side="right") - 1, 0, n_mels)
    width = np.diff(points)
    # Filter m spans points m .. m + 2 and has the height 2 / (its width in Hz).
    height = np.concatenate([[0.0], 2.0 / (points[2:] - points[:-2]), [0.0]])
    rise = (bins - points[run]) / width[run] * height[run + 1]
    fall = (points[run + 1] - bins) / width[run] * height[run]
    return run, rise, fall


# Slaney's scale: linear below 1 kHz, 15 mel there, then 27 mel for each factor of 6.4.
_LINEAR_HZ, _LINEAR_MEL, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _LINEAR_HZ:
        return hz * _LINEAR_MEL / _LINEAR_HZ
    return float(_LINEAR_MEL + np.log(hz / _LINEAR_HZ) / _LOG_STEP)


def _mel_to_hz(mel: Array) -> Array:
    log_part = _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MEL))
    return np.where(mel < _LINEAR_MEL, mel * _LINEAR_HZ / _LINEAR_MEL, log_part)
