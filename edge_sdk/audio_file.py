"""Audio files in and out, through libsndfile: WAV, FLAC, OGG, MP3 and what else it reads; WAV written.

Reading goes block by block, so that a long file is never in memory at its own rate and channel count.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from edge_sdk.checks import check_path
from edge_sdk.errors import AudioError
from edge_sdk.files import write_file

MAX_SECONDS = 1800.0  # half an hour, far past what any context holds; refused before it is decoded
MAX_ENCODED_BYTES = 1 << 30  # of a stream that cannot seek and so has to be held whole
_BLOCK_FRAMES = 1 << 16
# Writers that do not know the length yet announce one of the largest sizes: ffmpeg 2^32 - 1, sox and arecord near 2^31.
_UNKNOWN_BYTES = 0x7FFF0000

Array = np.ndarray[Any, Any]
PathOrFile = str | os.PathLike[str] | IO[bytes]


class AudioReader:
    """An opened audio file: `sample_rate` and an iterator over blocks, float32 [n, channels] in [-1, 1]."""

    def __init__(self, sound: Any, where: str) -> None:
        self._sound, self.where = sound, where
        self.sample_rate = int(sound.samplerate)
        # MP3 headers give an estimate of the length at best.
        self._exact = not str(sound.subtype).startswith("MPEG")
        if sound.frames > MAX_SECONDS * self.sample_rate:
            raise AudioError(_too_long(where, sound.frames / self.sample_rate))

    def __iter__(self) -> Iterator[Array]:
        read = 0
        while True:
            try:
                block = self._sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except RuntimeError as e:
                raise AudioError(f"{self.where} is damaged after {read / self.sample_rate:.2f} s: {_reason(e)}") from e
            if not len(block):
                break
            read += len(block)
            if read > MAX_SECONDS * self.sample_rate:
                raise AudioError(_too_long(self.where, read / self.sample_rate))
            yield block
        if self._exact and read < self._sound.frames:
            raise AudioError(
                f"{self.where} is cut short: it announces {self._sound.frames / self.sample_rate:.2f} s, "
                f"only {read / self.sample_rate:.2f} s are there; copy or record it again"
            )


@contextlib.contextmanager
def open_audio(source: PathOrFile | bytes | bytearray | memoryview) -> Iterator[AudioReader]:
    """Open a path, an open binary file (read from its position on) or the encoded bytes of one.

    Raises:
        AudioError: not readable, not audio, cut short, or longer than MAX_SECONDS.
    """
    with contextlib.ExitStack() as stack:
        file, where = _open(source, stack)
        yield stack.enter_context(_sound_file(file, where))


def write_wav(target: PathOrFile, pcm: Array | list[float], sample_rate: int, subtype: str = "PCM_16") -> None:
    """Write mono float PCM [n] as a WAV file. A path is replaced in one step: a failure leaves the old file.

    Integer subtypes saturate at full scale. "PCM_16" is rint(x * 32768), so that int16 audio read by `load_audio`
    comes back as it was.

    Raises:
        AudioError: PCM that is not finite or not one channel, an unknown subtype, a place that cannot be written.
    """
    data = _encode_wav(np.asarray(pcm), sample_rate, subtype)
    where = _name(target)
    try:
        if isinstance(target, (str, os.PathLike)):
            write_file(check_path("the WAV's place", target, AudioError), data)
        else:
            target.write(data)
    except AudioError:
        raise
    except Exception as e:  # the file object is the caller's: closed, open as text, or none at all
        raise AudioError(f"cannot write {where}: {getattr(e, 'strerror', None) or e}") from e


def _encode_wav(pcm: Array, sample_rate: int, subtype: str) -> bytes:
    soundfile = _soundfile()
    if subtype not in soundfile.available_subtypes("WAV"):
        raise AudioError(f"WAV subtype {subtype!r} is unknown; use PCM_16, PCM_24 or FLOAT")
    if pcm.ndim != 1 or pcm.dtype.kind != "f":
        raise AudioError(f"a WAV is written from one channel of floats [n], got {pcm.dtype}{list(pcm.shape)}")
    if not np.isfinite(pcm).all():
        raise AudioError("the PCM to write holds NaN or infinity")
    samples = pcm.astype(np.float32)
    if subtype == "PCM_16":  # libsndfile would round down
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    elif subtype not in ("FLOAT", "DOUBLE"):
        samples = np.clip(samples, -1.0, 1.0)
    out = io.BytesIO()
    try:
        soundfile.write(out, samples, int(sample_rate), format="WAV", subtype=subtype)
    except (RuntimeError, ValueError, TypeError, OverflowError) as e:
        raise AudioError(f"cannot write a WAV of {sample_rate!r} Hz: {_reason(e)}") from e
    return out.getvalue()


def _open(source: PathOrFile | bytes | bytearray | memoryview, stack: contextlib.ExitStack) -> tuple[IO[bytes], str]:
    where = _name(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source)), where
    try:
        if isinstance(source, (str, os.PathLike)):
            return _from_start(stack.enter_context(Path(source).open("rb")), where), where
        return _from_start(source, where), where
    except AudioError:
        raise
    except FileNotFoundError as e:
        # The first argument of Chat.send is sound: words given there are the likeliest mistake.
        words = isinstance(source, str) and " " in source
        hint = "; if these are words to be asked, give them as text=" if words else ""
        raise AudioError(f"cannot read {where}: {e.strerror}{hint}") from e
    except Exception as e:  # a closed file, a path with a zero byte, whatever the caller's file object raises
        raise AudioError(f"cannot read {where}: {getattr(e, 'strerror', None) or e}") from e


def _from_start(file: Any, where: str) -> IO[bytes]:
    """A file that can seek and whose sound begins at byte 0: the file itself, or its rest held in memory."""
    if isinstance(file, io.TextIOBase):
        raise AudioError(f"{where} is open as text; open it in binary mode ('rb')")
    seekable = getattr(file, "seekable", None)
    if seekable is not None and seekable() and file.tell() == 0:
        return cast(IO[bytes], file)
    held = bytearray()
    while chunk := file.read(1 << 20):
        if not isinstance(chunk, (bytes, bytearray)):
            raise AudioError(f"{where} is open as text; open it in binary mode ('rb')")
        held += chunk
        if len(held) > MAX_ENCODED_BYTES:
            raise AudioError(f"{where} holds more than {MAX_ENCODED_BYTES >> 20} MiB; pass a path or a shorter piece")
    return io.BytesIO(held)


@contextlib.contextmanager
def _sound_file(file: IO[bytes], where: str) -> Iterator[AudioReader]:
    soundfile = _soundfile()
    try:
        lengths = _data_chunk(file)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    except Exception as e:  # the file object may be the caller's
        raise AudioError(f"cannot read {where}: {getattr(e, 'strerror', None) or e}") from e
    if not size:
        raise AudioError(f"{where} is empty")
    try:
        sound = soundfile.SoundFile(file)
    except (RuntimeError, TypeError) as e:
        raise AudioError(f"{where} is not audio that can be read (WAV, FLAC, OGG, MP3): {_reason(e)}") from e
    with sound:
        if lengths is not None and lengths[0] == 0 < lengths[1]:
            raise AudioError(
                f"{where} was never completed: its header announces no sound, {lengths[1]} bytes follow; "
                "the recorder was stopped before it could finish the file"
            )
        if lengths is not None and lengths[1] < lengths[0]:
            raise AudioError(
                f"{where} is cut short: its header announces {lengths[0]} bytes of sound, {lengths[1]} are there "
                f"({sound.frames / sound.samplerate:.2f} s); copy or record it again"
            )
        yield AudioReader(sound, where)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as e:  # OSError: the package is there, libsndfile is not
        raise AudioError(
            f"audio files cannot be read or written here: {e}. Install it with `pip install soundfile` (on systems "
            "without a wheel also libsndfile1); arrays of samples work without"
        ) from e
    return soundfile


def _data_chunk(file: IO[bytes]) -> tuple[int, int] | None:
    """(announced, present) bytes of the sound chunk of a WAV or AIFF file; None if there is none or it is open-ended.

    libsndfile quietly reads what is there, so a recording that was cut off would pass as a shorter one.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RIFX", b"FORM") or head[8:] not in (b"WAVE", b"AIFF", b"AIFC"):
        return None
    at = 12
    while at + 8 <= size:
        file.seek(at)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little" if head[:4] == b"RIFF" else "big")
        at += 8
        if chunk[:4] in (b"data", b"SSND"):
            return (length, size - at) if length < _UNKNOWN_BYTES else None
        at += length + length % 2
    return None


def _name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"'{os.fspath(source)}'"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the audio given as {len(source)} bytes"
    name = getattr(source, "name", None)
    return f"'{name}'" if isinstance(name, str) else "the audio file object"


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the address of the object it was given."""
    return str(getattr(error, "error_string", None) or error).rstrip(".")


def _too_long(where: str, seconds: float) -> str:
    return f"{where} is {seconds / 60:.1f} minutes long, the limit is {MAX_SECONDS / 60:.0f}; cut it into pieces"
