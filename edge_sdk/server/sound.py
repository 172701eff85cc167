"""Sound as it stands in events: base64 of 24 kHz PCM or 8 kHz G.711, to and from what a Chat takes and gives."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from edge_sdk.audio import StreamResampler
from edge_sdk.server import g711
from edge_sdk.server.errors import ProtocolError

FORMATS = ("pcm16", "g711_ulaw", "g711_alaw")
PCM_RATE_HZ = 24000
MODEL_RATE_HZ = 16000  # what is kept and heard inside

Array = np.ndarray[Any, Any]


def rate_of(form: str) -> int:
    return PCM_RATE_HZ if form == "pcm16" else g711.RATE_HZ


def bytes_per_sample(form: str) -> int:
    return 2 if form == "pcm16" else 1


def decode(audio: str, form: str, where: str = "audio") -> Array:
    """base64 -> int16 [n] at the format's rate.

    Raises:
        ProtocolError: not base64, or half a sample.
    """
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ProtocolError(f"Invalid '{where}': expected base64 of {form} sound ({e}).", "invalid_value", where) from e
    if len(data) % bytes_per_sample(form):
        raise ProtocolError(
            f"Invalid '{where}': {len(data)} bytes are no whole number of 16-bit samples.", "invalid_value", where
        )
    if form == "pcm16":
        return np.frombuffer(data, "<i2").astype(np.int16)
    return g711.decode(data, form.removeprefix("g711_"))


def encode(pcm: Array, form: str) -> str:
    """float32 [n] in [-1, 1] -> base64."""
    samples = np.rint(np.clip(pcm, -1.0, 1.0) * 32767.0).astype(np.int16)
    data = samples.astype("<i2").tobytes() if form == "pcm16" else g711.encode(samples, form.removeprefix("g711_"))
    return base64.b64encode(data).decode()


def to_model(pcm: Array, form: str) -> Array:
    """A whole sound, int16 at the format's rate -> float32 at the model's."""
    resampler = StreamResampler(rate_of(form), MODEL_RATE_HZ)
    return np.concatenate([resampler.feed(pcm), resampler.finish()])


class SoundWriter:
    """A reply's sound as it is made -> base64 in the client's format. Counts what was given."""

    def __init__(self, sample_rate: int, form: str) -> None:
        self._form = form
        self._resampler = StreamResampler(sample_rate, rate_of(form))
        self._samples = 0

    @property
    def seconds(self) -> float:
        """Sound given so far."""
        return self._samples / rate_of(self._form)

    def write(self, pcm: Array) -> str:
        return self._encode(self._resampler.feed(pcm))

    def finish(self) -> str:
        return self._encode(self._resampler.finish())

    def _encode(self, pcm: Array) -> str:
        self._samples += len(pcm)
        return encode(pcm, self._form) if len(pcm) else ""
