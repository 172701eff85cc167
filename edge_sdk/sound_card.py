"""The machine's microphone and speaker as an `AudioLink`, through PortAudio (PyAudio, extra `audio`).

Two streams, each with a callback that does a fixed, small amount of work and waits for nothing: the microphone's hands
its piece to a queue, the speaker's takes from `Playback`. Whoever calls `read` resamples and removes the echo. A thread
of its own watches both and opens them anew when a device went away.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time

from edge_sdk.audio import SAMPLE_RATE
from edge_sdk.audio_devices import PORTAUDIO, open_portaudio
from edge_sdk.audio_link import Heard
from edge_sdk.device_streams import Piece, Streams, Wanted
from edge_sdk.echo import open_canceller
from edge_sdk.errors import DeviceError
from edge_sdk.hearing import Hearing
from edge_sdk.playback import Playback
from edge_sdk.runtime import Array
from edge_sdk.sound_stats import SoundStats

WATCH_S = 0.2
STALLED_S = 3.0  # a stream without a callback for so long is gone; some devices need a second or two to begin
RETRY_S = (0.5, 1.0, 2.0)  # between attempts to open a device again; the last goes on

logger = logging.getLogger(__name__)


class SoundCard:
    """Microphone and speaker of this machine.

    Args:
        input_device: the microphone's index or (part of) its name, see `edge_sdk.list_devices`; None is the default.
        output_device: the speaker's.
        input_rate: Hz to open the microphone at; None takes its own. Whatever it is, 16 kHz mono are heard.
        output_rate: the speaker's.
        buffer_ms: sound per callback. More costs delay and helps where callbacks come late.
        echo_cancellation: "auto" (what is installed; without any, a line in the log), "speex", "webrtc" or "off".
        wait_for_device: a device that goes away once started is waited for. False: `read` raises DeviceError.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        *,
        input_device: str | int | None = None,
        output_device: str | int | None = None,
        input_rate: int | None = None,
        output_rate: int | None = None,
        buffer_ms: float = 20.0,
        echo_cancellation: str = "auto",
        wait_for_device: bool = True,
    ) -> None:
        self._input, self._output = Wanted(input_device, input_rate), Wanted(output_device, output_rate)
        self._buffer_ms, self._wait = buffer_ms, wait_for_device
        self._hearing = Hearing(open_canceller(echo_cancellation))
        self._playback = Playback(SAMPLE_RATE)
        # What the callbacks hand over; SimpleQueue.put waits for nothing, in C.
        self._heard: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._played: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._streams: Streams | None = None
        self._failure: DeviceError | None = None
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self._lifecycle = threading.Lock()
        self._hearing_lock = threading.Lock()  # between `read` and `close`
        self._reopened = 0
        self._overruns = self._device_underruns = 0  # of streams that are gone

    # -- opening and closing

    def start(self) -> None:
        """Open the devices, also anew after one went away for good. Nothing happens if they are open.

        Raises:
            DeviceError: PyAudio is missing, there is no such device, it does not offer the rate, or another program has
                it; says which there are. The card can be started again.
        """
        with self._lifecycle:
            if self._closing.is_set():
                raise DeviceError("this sound card was closed; make another")
            if self._failure is not None and self._watcher is not None:  # its device went away: it has ended
                self._watcher.join()
                self._watcher = self._failure = None
            if self._watcher is not None:
                return
            self._open()
            self._watcher = threading.Thread(target=self._watch, name="edge_sdk-sound", daemon=True)
            self._watcher.start()
            _started.add(self)

    def close(self) -> None:
        """Let go of the devices; `read` raises DeviceError from now on. Safe to call again."""
        self._closing.set()
        self._heard.put(None)  # whoever waits in `read`
        with self._lifecycle:
            if self._watcher is not None:
                self._watcher.join()
                self._watcher = None
            self._shut()
            _started.discard(self)
        with self._hearing_lock:
            self._hearing.close()

    def _open(self) -> None:
        """Both devices, by a PortAudio that looked for devices just now."""
        with PORTAUDIO:
            port = open_portaudio()
            try:
                streams = Streams(port, self._input, self._output, self._buffer_ms, self._heard, self._played)
                self._playback.change_rate(streams.output_rate)
                streams.start(self._playback)
            except OSError as e:  # a device that goes while it is asked
                port.terminate()
                raise DeviceError(f"PortAudio cannot use the sound devices: {e}") from e
            except BaseException:
                port.terminate()
                raise
        self._streams = streams
        logger.info("microphone %s; speaker %s", streams.input_name, streams.output_name)

    def _shut(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            with PORTAUDIO:
                streams.close()
            self._overruns += streams.overruns
            self._device_underruns += streams.underruns

    # -- a device that goes away

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            streams = self._streams
            if streams is None:
                continue
            gone = streams.gone(STALLED_S)
            if gone:
                self._shut()
                if not self._wait:
                    self._fail(DeviceError(f"{gone} went away; plug it in and start anew, or set wait_for_device"))
                    return
                logger.warning("%s went away; waiting for it", gone)
                self._reopen()

    def _reopen(self) -> None:
        last = ""
        attempt = 0
        while not self._closing.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
            attempt += 1
            try:
                self._open()
            except DeviceError as e:
                if str(e) != last:
                    logger.warning("still waiting: %s", e)
                last = str(e)
                continue
            self._reopened += 1
            logger.warning("the sound devices are back")
            return

    def _fail(self, failure: DeviceError) -> None:
        self._failure = failure
        self._heard.put(None)

    # -- hearing

    def read(self, timeout_s: float | None = None) -> Heard | None:
        """The next piece, at least 10 ms, in order; None when none came in time. See `AudioLink.read`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._check_open()
            try:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                piece = self._heard.get(timeout=left_s)
            except queue.Empty:
                return None
            if piece is None:
                continue
            with self._hearing_lock:
                self._check_open()
                self._take_played()
                heard = self._hearing.take(piece.pcm(), piece.sample_rate, piece.at_s, gap=piece.gap)
            if heard is not None:
                return heard

    def _take_played(self) -> None:
        """The reference up to now; the speaker's callbacks are ahead of what is heard by both devices' delays."""
        with contextlib.suppress(queue.Empty):
            while True:
                piece = self._played.get_nowait()
                self._hearing.played(piece.pcm(), piece.sample_rate, piece.at_s)

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise DeviceError("this sound card is closed")
        if self._failure is not None:
            raise self._failure
        if self._watcher is None:
            raise DeviceError("this sound card was not started; call start() first")

    # -- playing

    def begin_reply(self) -> None:
        """See `AudioLink.begin_reply`."""
        self._playback.begin_reply()

    def play(self, pcm: Array, sample_rate: int) -> None:
        """Append sound of the current reply, float32 mono [n] at any rate from 8000 to 192000 Hz; returns at once.

        Raises:
            AudioError: not finite, or a dtype or rate that is not supported; nothing of it is played.
        """
        self._playback.play(pcm, sample_rate)

    def flush(self) -> float:
        """Silence with the next callback: what waits is dropped. Returns `played_ms`."""
        return self._playback.flush(self.now())

    def end_reply(self) -> None:
        """See `AudioLink.end_reply`."""
        self._playback.end_reply()

    @property
    def played_ms(self) -> float:
        """Of the current reply's sound, what has left the speaker, by the time its device names."""
        return self._playback.played_ms(self.now())

    @property
    def pending_ms(self) -> float:
        """Of the current reply's sound, what was given to `play` and has not left the speaker."""
        return self._playback.pending_ms(self.now())

    def now(self) -> float:
        """The system's monotonic clock, seconds."""
        return time.monotonic()

    @property
    def stats(self) -> SoundStats:
        """What was counted so far."""
        streams = self._streams
        return SoundStats(
            underruns=self._playback.underruns,
            jitter_ms=self._playback.jitter_ms,
            device_underruns=self._device_underruns + (streams.underruns if streams else 0),
            device_overruns=self._overruns + (streams.overruns if streams else 0),
            lost_ms=self._hearing.lost_ms,
            reopened=self._reopened,
            realigned=self._hearing.realigned,
            echo_gain_db=self._hearing.echo_gain_db,
            input_delay_ms=1e3 * (streams.input_delay_s if streams else 0.0),
            output_delay_ms=1e3 * (streams.output_delay_s if streams else 0.0),
        )

    def __enter__(self) -> SoundCard:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_started: set[SoundCard] = set()


@atexit.register
def _close_all() -> None:
    """A callback that comes when the interpreter is gone takes the process down with it."""
    for card in list(_started):
        card.close()
