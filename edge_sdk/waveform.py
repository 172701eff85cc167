"""The waveform part: vocoder mel -> PCM, incrementally; any cutting of the mel gives the same samples.

`Waveform` is engines, shared and stateless; `WaveformStream` is one utterance. Every convolution keeps its left
context, so a call costs its new frames. To the right the sound of a frame depends on `lookahead_frames` and a little
of the next STFT frame: after L frames all but the last lookahead_frames frames and n_fft/2 - hop samples are final.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.call_state import CallState
from edge_sdk.config import WaveformConfig
from edge_sdk.errors import BundleError
from edge_sdk.excitation import Excitation
from edge_sdk.runtime import Array, Runtime

_MOST_DRAWS = 1 << 30  # of the seeded generator before the noise begins; the released sizes have 5 million


class Waveform:
    """The waveform engines on one runtime. Holds no state of an utterance; threads may share it."""

    def __init__(self, runtime: Runtime, config: WaveformConfig) -> None:
        """Raises BundleError if the manifest's sizes cannot be."""
        n_fft, hop = config.stft_n_fft, config.stft_hop
        if (
            min(n_fft, hop, *config.upsample_rates, config.sample_rate) < 1
            or n_fft % 2
            or n_fft % hop
            or n_fft < 2 * hop
            or n_fft // 2 >= config.samples_per_frame
            or min(config.harmonics, config.lookahead_frames, config.f0_lookahead_frames) < 0
            or not 0 <= config.source_noise_skip <= _MOST_DRAWS
        ):
            raise BundleError(f"the manifest's waveform part cannot be, export the bundle again: {config}")
        self.runtime = runtime
        self.config = config
        self.f0_engine = runtime.engine("f0")
        self.trunk_engine = runtime.engine("waveform")


class WaveformStream:
    """One utterance: `push` mel frames, `finish` at the end; together samples_per_frame samples a frame."""

    def __init__(self, waveform: Waveform, block_frames: int) -> None:
        """`block_frames`: at most so many frames in one call of the engines, which bounds their memory."""
        self._config = waveform.config
        self._block_frames = block_frames
        self._excitation = Excitation(waveform.config)
        self._overlap = _OverlapAdd(waveform.config)
        self._f0_call = waveform.f0_engine.call()
        self._f0_state = CallState(waveform.runtime, waveform.f0_engine)
        self._f0_state.bind(self._f0_call)
        self._f0_call.fetch("f0")
        self._trunk_call = waveform.trunk_engine.call()
        self._trunk_state = CallState(waveform.runtime, waveform.trunk_engine)
        self._trunk_state.bind(self._trunk_call)
        self._trunk_call.fetch("overlapped")
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of an utterance; memory is kept."""
        c = self._config
        self._f0_state.clear()
        self._trunk_state.clear()
        self._excitation.reset()
        self._overlap.reset()
        self._mel = np.empty((0, c.n_mels), np.float32)  # frames the trunk did not take yet, and what follows them
        self._f0_ahead = 0  # of those, frames whose f0 is known
        self._harmonics = np.empty((0, c.harmonics + 1), np.float32)  # excitation the STFT still needs
        self._first = True

    def push(self, mel: Array) -> Array:
        """mel float32 [n, n_mels] -> the samples that are now final, float32 [m]."""
        done = [np.empty(0, np.float32)]
        for at in range(0, len(mel), self._block_frames):
            self._mel = np.concatenate([self._mel, mel[at : at + self._block_frames]])
            ready = len(self._mel) - self._config.f0_lookahead_frames
            self._excite(ready, self._mel)
            # One frame of excitation more than the trunk makes: the last STFT frame reaches into it.
            done.append(self._generate(min(len(self._mel) - self._config.lookahead_frames, ready - 1), self._mel))
        return np.concatenate(done)

    def finish(self) -> Array:
        """The rest, with zeros for the frames that never came."""
        frames = len(self._mel)
        if not frames:
            return np.empty(0, np.float32)
        margin = max(self._config.lookahead_frames, self._config.f0_lookahead_frames)
        padded = np.pad(self._mel, ((0, margin), (0, 0)))
        self._excite(frames, padded)
        half = self._config.stft_n_fft // 2
        self._harmonics = np.concatenate([self._harmonics, self._harmonics[-2 : -2 - half : -1]])  # mirrored edge
        return np.concatenate([self._generate(frames, padded), self._overlap.finish()])

    def _excite(self, frames: int, mel: Array) -> None:
        """Make the excitation known for the first `frames` of `mel`."""
        if frames <= self._f0_ahead:
            return
        self._f0_call.set("mel", mel[self._f0_ahead : frames + self._config.f0_lookahead_frames])
        rows = self._excitation.frames(self._f0_call.run()["f0"])
        if self._first and not len(self._harmonics):
            half = self._config.stft_n_fft // 2
            rows = np.concatenate([rows[half:0:-1], rows])  # mirrored edge
        self._harmonics = np.concatenate([self._harmonics, rows])
        self._f0_ahead = frames

    def _generate(self, frames: int, mel: Array) -> Array:
        """Run the trunk over the first `frames` of `mel`, and drop what nobody needs any more."""
        if frames <= 0:
            return np.empty(0, np.float32)
        c = self._config
        # Samples under the STFT frames of this call; a later call's first frame begins one hop after the last one's.
        covered = frames * c.samples_per_frame + c.stft_n_fft - (0 if self._first else c.stft_hop)
        self._trunk_call.set("mel", mel[: frames + c.lookahead_frames])
        self._trunk_call.set("harmonics", self._harmonics[:covered])
        self._trunk_call.set("first", np.array([self._first], np.int64))
        pcm = self._overlap.add(self._trunk_call.run()["overlapped"])
        self._harmonics = self._harmonics[covered - c.stft_n_fft + c.stft_hop :]
        self._mel = self._mel[frames:]
        self._f0_ahead -= frames
        self._first = False
        return pcm

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return self._f0_state.nbytes + self._trunk_state.nbytes


class _OverlapAdd:
    """Joins the inverse STFT frames of successive calls, divides by the windows, and clips."""

    def __init__(self, config: WaveformConfig) -> None:
        self._n_fft, self._hop = config.stft_n_fft, config.stft_hop
        self._limit = np.float32(config.audio_limit)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self._n_fft) / self._n_fft)
        self._power = (window * window).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        self._tail = np.zeros(self._n_fft - self._hop, np.float32)
        self._tail_power = np.zeros_like(self._tail)
        self._skip = self._n_fft // 2  # the first frame is centred on the first sample

    def add(self, overlapped: Array) -> Array:
        """The sum of a call's windowed frames, float32 [(F - 1) * hop + n_fft] -> final samples, float32."""
        count = (len(overlapped) - self._n_fft) // self._hop + 1
        total, power = overlapped.copy(), self._window_power(count)
        total[: len(self._tail)] += self._tail
        power[: len(self._tail)] += self._tail_power
        final = count * self._hop
        self._tail, self._tail_power = total[final:], power[final:]
        begin, self._skip = self._skip, 0
        return self._normalized(total[begin:final], power[begin:final])

    def finish(self) -> Array:
        """The samples up to the centre of the last frame."""
        rest = self._n_fft // 2 - self._hop
        return self._normalized(self._tail[:rest], self._tail_power[:rest])

    def _normalized(self, total: Array, power: Array) -> Array:
        return np.clip(total / power, -self._limit, self._limit)

    def _window_power(self, count: int) -> Array:
        """Sum of the squared windows of `count` frames."""
        power = np.zeros((count - 1) * self._hop + self._n_fft, np.float32)
        for at in range(0, self._n_fft, self._hop):
            power[at : at + count * self._hop] += np.tile(self._power[at : at + self._hop], count)
        return power
