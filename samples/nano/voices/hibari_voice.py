"""The reply's voice: hibari-tts (Apache-2.0, 24 kHz), with the pitch and the word times that it computes inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from edge_sdk.errors import Error
from edge_sdk.runtime import Array, no_telemetry
from samples.nano.voices.packages import HIBARI, model_file

RATE = 24000
F0_RATE = 80  # of hibari's pitch curve
_DURATIONS = "/Clip_output_0"  # in the model's graph: how long each phoneme is, float32 [L], in 25 ms
_DURATION_S = 0.025


@dataclass(frozen=True, eq=False)
class Spoken:
    """Speech, float32 [n] in [-1, 1].

    Attributes:
        f0: Hz, float32 [F] at 80 a second, 0 where unvoiced; empty for voices that do not tell it.
        word_starts_s: when each word (as `str.split` parts the text) begins; empty where it is not known.
    """

    pcm: Array
    rate: int
    f0: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    word_starts_s: tuple[float, ...] = ()


class HibariVoice:
    """One synthesizer; the same text, speed and seed give the same samples."""

    def __init__(self) -> None:
        path = model_file(HIBARI)
        no_telemetry()  # hibari imports onnxruntime
        try:
            import onnx
            from hibari import Hibari
        except ModuleNotFoundError as e:
            raise Error(f"the package {e.name} is missing: python -m pip install {e.name}") from e
        graph = onnx.load(str(path))
        # One output more: the model computes phoneme lengths and does not tell them.
        graph.graph.output.append(onnx.helper.make_tensor_value_info(_DURATIONS, onnx.TensorProto.FLOAT, None))
        self._model = Hibari(model=graph.SerializeToString())

    def say(self, text: str, *, speed: float = 1.0, seed: int = 0) -> Spoken:
        """
        Args:
            speed: 2 is twice as fast.
            seed: of the noise in unvoiced sounds.
        """
        from hibari import dsp

        random = np.random.default_rng(seed)
        pcm, f0, starts, at_s = [], [], [], 0.0
        sentences = self._model.phonemize(text)
        if not sentences:
            raise Error(f"there is nothing to say in {text!r}")
        for phonemes in sentences:
            ids = self._model.ids(phonemes)
            feeds = {"ids": np.array([ids], np.int64), "speed": np.array([speed], np.float32)}
            *spectra, curve, durations = self._model.sess.run(None, feeds)
            pcm.append(dsp.synth(*(s[0] for s in spectra), curve[0], random))
            f0.append(curve[0].astype(np.float32))
            starts += [at_s + s for s in _word_starts(phonemes, self._model.vocab, durations)]
            at_s += len(pcm[-1]) / RATE
        known = tuple(round(s, 3) for s in starts) if len(starts) == len(text.split()) else ()
        return Spoken(np.concatenate(pcm).astype(np.float32), RATE, np.concatenate(f0), known)


def _word_starts(phonemes: str, vocabulary: dict[str, int], durations: Array) -> list[float]:
    """Seconds. Words are what spaces part; before and behind all stands one pad."""
    ends = list(accumulate(float(d) * _DURATION_S for d in durations))
    starts, at, fresh = [], 0, True
    for char in phonemes:
        if char in vocabulary:
            if fresh and char != " ":
                starts.append(ends[at])
            at += 1
        fresh = char == " " or (fresh and char not in vocabulary)
    return starts
