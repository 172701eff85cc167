"""PortAudio's two streams and their callbacks, which do a fixed amount of work and wait for nothing."""

from __future__ import annotations

import contextlib
import queue
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.audio_devices import Device, Direction, devices_of, find_device, find_format, import_pyaudio, quiet_stderr
from edge_sdk.errors import DeviceError
from edge_sdk.playback import Playback
from edge_sdk.runtime import Array

MAX_DELAY_S = 5.0  # a device that names a longer one names none: some leave the field 0, so that it seems years
BACKLOG = 1000  # pieces that nobody fetched, 20 s of them: then sound is dropped, and counted


@dataclass(frozen=True, eq=False)
class Piece:
    """What one callback handed over. `at_s`: when its first sample was taken, or leaves the speaker."""

    data: bytes | Array
    channels: int
    sample_rate: int
    at_s: float
    gap: bool = False

    def pcm(self) -> Array:
        """float32 mono [n], channels averaged."""
        if not isinstance(self.data, bytes):
            return self.data
        pcm = np.frombuffer(self.data, np.float32)
        return pcm if self.channels == 1 else pcm.reshape(-1, self.channels).mean(axis=1, dtype=np.float32)


@dataclass
class Wanted:
    """What the user asked of a device. An index is good for one list: once opened, the device's name is kept."""

    device: str | int | None
    rate: int | None
    name: str | None = None

    def find(self, devices: list[Device], direction: Direction) -> Device:
        wanted = self.name if isinstance(self.device, int) and self.name else self.device
        found = find_device(devices, wanted, direction)
        self.name = str(found["name"])
        return found


class Streams:
    """Microphone and speaker, found and opened. `close` ends its PortAudio too.

    Attributes:
        overruns, underruns: how often the devices said that this process came late.
        input_latency_s, output_latency_s: the devices' delays as they were opened.
        input_delay_s, output_delay_s: as the last callbacks named them.
    """

    def __init__(
        self,
        port: Any,
        wanted_input: Wanted,
        wanted_output: Wanted,
        buffer_ms: float,
        heard: queue.SimpleQueue[Any],
        played: queue.SimpleQueue[Any],
    ) -> None:
        """Raises DeviceError for a device that is not there or cannot be opened so."""
        self._pyaudio, self._port = import_pyaudio(), port
        self._heard, self._played = heard, played
        self._buffer_ms = buffer_ms
        devices = devices_of(port)
        self._input = wanted_input.find(devices, "input")
        self._output = wanted_output.find(devices, "output")
        self.input_rate, self._input_channels = find_format(port, self._input, "input", wanted_input.rate)
        self.output_rate, self._output_channels = find_format(port, self._output, "output", wanted_output.rate)
        self.overruns = self.underruns = 0
        self._gap = False
        self._microphone: Any = None
        self._speaker: Any = None
        self.input_latency_s = self.output_latency_s = 0.0
        self.input_delay_s = self.output_delay_s = 0.0
        self._last_heard_s = self._last_played_s = 0.0

    @property
    def input_name(self) -> str:
        return f"{self._input['name']!r}, {self.input_rate} Hz, {self._input_channels} channel(s)"

    @property
    def output_name(self) -> str:
        return f"{self._output['name']!r}, {self.output_rate} Hz, {self._output_channels} channel(s)"

    def start(self, playback: Playback) -> None:
        """Open both; the callbacks run from now on."""
        self._playback = playback
        self._mono = np.zeros(1, np.float32)
        self._last_heard_s = self._last_played_s = time.monotonic()
        try:
            self._speaker = self._stream("output", self._output, self.output_rate, self._output_channels, self._play)
            self._microphone = self._stream("input", self._input, self.input_rate, self._input_channels, self._hear)
        except BaseException:
            self._close_streams()
            raise
        self.input_latency_s = self._microphone.get_input_latency()
        self.output_latency_s = self._speaker.get_output_latency()

    def gone(self, stalled_s: float) -> str | None:
        """Which device stopped, in words; None while both run."""
        now = time.monotonic()
        for stream, last_s, what in (
            (self._microphone, self._last_heard_s, f"the microphone {self._input['name']!r}"),
            (self._speaker, self._last_played_s, f"the speaker {self._output['name']!r}"),
        ):
            try:
                runs = stream.is_active() and now - last_s < stalled_s
            except OSError:
                runs = False
            if not runs:
                return what
        return None

    def close(self) -> None:
        """Also with devices that are gone."""
        self._close_streams()
        self._port.terminate()

    def _close_streams(self) -> None:
        for stream in (self._microphone, self._speaker):
            if stream is not None:
                with quiet_stderr(), contextlib.suppress(OSError):
                    stream.close()
        self._microphone = self._speaker = None

    def _stream(self, direction: Direction, device: Device, rate: int, channels: int, callback: Any) -> Any:
        try:
            with quiet_stderr():
                return self._port.open(
                    rate,
                    channels,
                    self._pyaudio.paFloat32,
                    **{direction: True, f"{direction}_device_index": device["index"]},
                    frames_per_buffer=max(1, round(rate * self._buffer_ms / 1e3)),
                    stream_callback=callback,
                )
        except (OSError, ValueError) as e:
            reason = e.args[0] if e.args else e
            raise DeviceError(
                f"{direction} device {device['name']!r} cannot be opened at {rate} Hz with {channels} channel(s): "
                f"{reason}. It may be taken by another program, or have been unplugged"
            ) from e

    # -- callbacks, in PortAudio's threads

    def _hear(self, data: bytes, frames: int, times: dict[str, float], status: int) -> tuple[None, int]:
        now = self._last_heard_s = time.monotonic()
        delay_s = times["current_time"] - times["input_buffer_adc_time"]
        if not 0 <= delay_s < MAX_DELAY_S:
            delay_s = self.input_latency_s
        delay_s = max(delay_s, frames / self.input_rate)  # the last sample cannot come before it was taken
        self.input_delay_s = delay_s
        if status & self._pyaudio.paInputOverflow:
            self.overruns += 1
            self._gap = True
        if self._heard.qsize() < BACKLOG:
            self._heard.put(Piece(data, self._input_channels, self.input_rate, now - delay_s, self._gap))
            self._gap = False
        else:
            self._gap = True
        return None, self._pyaudio.paContinue

    def _play(self, _: None, frames: int, times: dict[str, float], status: int) -> tuple[bytes, int]:
        now = self._last_played_s = time.monotonic()
        delay_s = times["output_buffer_dac_time"] - times["current_time"]
        if not 0 <= delay_s < MAX_DELAY_S:
            delay_s = self.output_latency_s
        self.output_delay_s = delay_s
        if status & self._pyaudio.paOutputUnderflow:
            self.underruns += 1
        mono = np.empty(frames, np.float32)
        self._playback.fill(mono, now + delay_s)
        if self._played.qsize() < BACKLOG:
            self._played.put(Piece(mono, 1, self.output_rate, now + delay_s))
        data = mono if self._output_channels == 1 else np.repeat(mono, self._output_channels)
        return data.tobytes(), self._pyaudio.paContinue
