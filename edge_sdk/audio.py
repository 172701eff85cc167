"""PCM in: one check, mono, resampling; whole (`load_audio`) or in pieces (`StreamResampler`), with the same samples.

Inside the SDK sound is float32 mono. Values of float input are kept as they are, also above 1 (a hot recording);
values that can only be integers given as floats are refused.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np

from edge_sdk.audio_file import MAX_SECONDS, open_audio, write_wav
from edge_sdk.errors import AudioError

__all__ = ["StreamResampler", "check_pcm", "check_rate", "load_audio", "write_wav"]

SAMPLE_RATE = 16000
MIN_RATE_HZ, MAX_RATE_HZ = 8000, 192000
MIN_MS = 40  # one 25 Hz row: 640 samples at 16 kHz
MAX_CHANNELS = 32
MAX_ABS = 64.0  # far above any float recording, far below integer scale

Array = np.ndarray[Any, Any]


def load_audio(source: Any, sample_rate: int | None = None, *, to_rate: int = SAMPLE_RATE) -> Array:
    """Any audio a caller may hand over -> float32 mono [n] at `to_rate` Hz, in [-1, 1]. Always a new array.

    Args:
        source: a path, an open binary file (read from its position on), the encoded bytes of a file, or an array:
            float32 or float64 in [-1, 1], or int16 (read as x / 32768), of shape [n], [n, channels] or [channels, n].
            Of two axes the shorter one is the channels; they are averaged.
        sample_rate: Hz of an array, 16000 if not given. For encoded audio leave it out: the file says its own.

    Raises:
        AudioError: not readable, not finite, under 40 ms (640 samples at 16 kHz), over MAX_SECONDS, a rate outside
            8000 to 192000 Hz, a dtype or shape that is none of the above.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray)) or _is_bytes_view(source) or hasattr(source, "read"):
        pcm, where = _decode(source, sample_rate, to_rate)
    else:
        pcm, where = _from_array(source, SAMPLE_RATE if sample_rate is None else sample_rate, to_rate), "the audio"
    least = to_rate * MIN_MS // 1000
    if len(pcm) < least:
        raise AudioError(f"{where} has {len(pcm)} samples at {to_rate} Hz; at least {least} ({MIN_MS} ms) are needed")
    return pcm


def check_pcm(pcm: Any, where: str = "the audio") -> Array:
    """One piece of PCM -> float32 mono [n], a new array. Nothing is kept, so a refused piece harms no stream.

    Args:
        pcm: float32, float64 or int16, [n] or [n, channels] (time first, since a piece may be shorter than wide).

    Raises:
        AudioError: another dtype or shape, NaN or infinity, values beyond any float recording.
    """
    array = _as_array(pcm, where)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise AudioError(
            f"{where} has the shape {list(array.shape)}; use [samples] or [samples, channels], "
            f"at most {MAX_CHANNELS} channels"
        )
    if array.dtype == np.int16:
        array = array.astype(np.float32) * np.float32(1 / 32768)
    else:
        _check_values(array, where)
    if array.ndim == 1:
        return array.astype(np.float32)  # a copy: the caller may fill its buffer anew
    mono: Array = np.ascontiguousarray(array, np.float64).mean(axis=1).astype(np.float32)
    return mono


def check_rate(sample_rate: Any, where: str = "the audio") -> int:
    """A sample rate in Hz as an int, if it is a whole number from 8000 to 192000; else AudioError."""
    try:
        rate = int(sample_rate) if isinstance(sample_rate, float) else operator.index(sample_rate)
    except (TypeError, ValueError, OverflowError):
        rate = 0
    if rate != sample_rate or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(
            f"{where} has a sample rate of {sample_rate!r} Hz; supported are whole numbers "
            f"from {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        )
    return rate


class StreamResampler:
    """PCM of any rate in pieces -> float32 mono at `to_rate`. However it is cut, the samples are the same.

    soxr at its HQ setting; `finish` gives the rest. At equal rates samples pass. soxr works in blocks, so that samples
    come in bursts, up to 58 ms late; with `low_delay` they come evenly, 7 to 14 ms late, for 0.3 % of a processor.
    """

    def __init__(
        self, sample_rate: int, to_rate: int = SAMPLE_RATE, where: str = "the audio", *, low_delay: bool = False
    ) -> None:
        """Raises AudioError for a rate that is not supported; `where` names the source in messages."""
        self.sample_rate, self.to_rate, self._where = check_rate(sample_rate, where), to_rate, where
        self._soxr: Any = None
        self._finished = False
        if self.sample_rate != to_rate:
            import soxr

            self._soxr = soxr.ResampleStream(self.sample_rate, to_rate, 1, dtype="float32", quality="HQ", vr=low_delay)

    def feed(self, pcm: Any) -> Array:
        """The next piece (as `check_pcm` takes it) -> the samples that are ready, float32 [m], m may be 0.

        Raises:
            AudioError: the piece is refused whole; the stream goes on as if it had not been fed.
        """
        if self._finished:
            raise AudioError(f"{self._where} was finished; open a new stream for more")
        piece = check_pcm(pcm, self._where)
        return piece if self._soxr is None else self._resample(piece, last=False)

    def finish(self) -> Array:
        """The samples still inside, float32 [m]. Nothing can be fed after this."""
        if self._finished:
            raise AudioError(f"{self._where} was finished already")
        self._finished = True
        nothing = np.empty(0, np.float32)
        return nothing if self._soxr is None else self._resample(nothing, last=True)

    def _resample(self, piece: Array, last: bool) -> Array:
        out: Array = self._soxr.resample_chunk(piece, last=last)
        return out


def _decode(source: Any, sample_rate: int | None, to_rate: int) -> tuple[Array, str]:
    with open_audio(source) as audio:
        if sample_rate is not None and sample_rate != audio.sample_rate:
            raise AudioError(
                f"{audio.where} is at {audio.sample_rate} Hz, sample_rate={sample_rate} was given; "
                "leave it out for encoded audio"
            )
        resampler = StreamResampler(audio.sample_rate, to_rate, audio.where)
        parts = [resampler.feed(block) for block in audio]
        return np.concatenate([*parts, resampler.finish()]), audio.where


def _from_array(source: Any, sample_rate: int, to_rate: int) -> Array:
    array = _as_array(source, "the audio")
    if array.size == 0:
        raise AudioError("the audio is empty")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    array = np.atleast_1d(array)
    resampler = StreamResampler(sample_rate, to_rate)
    if len(array) > MAX_SECONDS * resampler.sample_rate:
        raise AudioError(
            f"the audio is {len(array) / resampler.sample_rate / 60:.1f} minutes long, the limit is "
            f"{MAX_SECONDS / 60:.0f}; cut it into pieces"
        )
    return np.concatenate([resampler.feed(array), resampler.finish()])


def _as_array(pcm: Any, where: str) -> Array:
    try:
        array = np.asarray(pcm)
    except Exception as e:  # the object is the caller's, and so is its __array__
        raise AudioError(f"{where} is a {type(pcm).__name__} that does not become an array: {e}") from e
    if array.size == 0 and isinstance(pcm, (list, tuple)):
        array = array.astype(np.float32)
    if array.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int16)):
        what = f"dtype {array.dtype}" if array.ndim else f"the type {type(pcm).__name__}"
        raise AudioError(f"{where} has {what}; use float32 or float64 in [-1, 1], or int16")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_values(array: Array, where: str) -> None:
    peak = np.abs(array).max(initial=0.0)
    if not np.isfinite(peak):
        at = int(np.argmax(~np.isfinite(array).all(axis=-1) if array.ndim == 2 else ~np.isfinite(array)))
        raise AudioError(f"{where} holds NaN or infinity, first at sample {at}")
    if peak > MAX_ABS:
        raise AudioError(
            f"{where} holds values up to {peak:.6g}; floats must be in [-1, 1]. "
            "Divide samples of int16 scale by 32768, or pass them as int16"
        )


def _is_bytes_view(source: Any) -> bool:
    return isinstance(source, memoryview) and source.itemsize == 1
