"""The sound devices of this machine, through PyAudio (extra `audio`): which there are, and which one was meant."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, Literal

from edge_sdk.errors import DeviceError

Direction = Literal["input", "output"]
Device = dict[str, Any]

SYSTEM_PACKAGES = "apt install portaudio19-dev python3-dev gcc"
RATES_HZ = (48000, 44100, 16000, 24000, 32000, 22050, 96000, 8000, 192000)  # tried in this order after the device's own

PORTAUDIO = threading.RLock()
"""Opening and ending PortAudio or a stream of it is not safe in two threads at once."""


def list_devices() -> list[Device]:
    """Every device: {"index", "name", "inputs", "outputs", "sample_rate", "default_input", "default_output"}.

    Channels in `inputs` and `outputs`, Hz in `sample_rate`. PortAudio is opened anew each time, so that devices which
    came or went are seen; not while a sound card is open in this process, which keeps PortAudio's list as it was.

    Raises:
        DeviceError: PyAudio is not installed, or PortAudio cannot start.
    """
    with PORTAUDIO:
        port = open_portaudio()
        try:
            return devices_of(port)
        finally:
            port.terminate()


def import_pyaudio() -> Any:
    """The module; DeviceError if it is not installed."""
    try:
        import pyaudio
    except ImportError as e:
        raise DeviceError(
            f"PyAudio is not installed ({e}): {SYSTEM_PACKAGES}, then pip install 'edge_sdk[audio]'"
        ) from e
    return pyaudio


def open_portaudio() -> Any:
    """A PyAudio object, whose `terminate` the caller owes. The list of devices is new if there was none before it."""
    pyaudio = import_pyaudio()
    with PORTAUDIO, quiet_stderr():
        try:
            return pyaudio.PyAudio()
        except OSError as e:
            raise DeviceError(f"PortAudio cannot start: {e}") from e


def devices_of(port: Any) -> list[Device]:
    """`list_devices` of an open PortAudio."""
    defaults = _default(port.get_default_input_device_info), _default(port.get_default_output_device_info)
    return [_describe(port.get_device_info_by_index(n), *defaults) for n in range(port.get_device_count())]


def find_device(devices: list[Device], wanted: str | int | None, direction: Direction) -> Device:
    """The device meant by an index (or its digits), a name or a part of one (in any case), or None for the default.

    A name that is met whole goes before one that is met in part.

    Raises:
        DeviceError: there is none, it has no channels in that direction, or several are meant; lists what there is.
    """
    usable = [d for d in devices if d[f"{direction}s"] > 0]
    if wanted is None:
        found = [d for d in usable if d[f"default_{direction}"]] or usable[:1]
    elif isinstance(wanted, str):
        exact = [d for d in usable if d["name"].casefold() == wanted.casefold()]
        found = exact[:1] or [d for d in usable if wanted.casefold() in d["name"].casefold()]
        if not found and wanted.isdecimal():  # an index from a command line
            found = [d for d in usable if d["index"] == int(wanted)]
    else:
        found = [d for d in usable if d["index"] == wanted]
    if len(found) == 1:
        return found[0]
    kind = "microphone" if direction == "input" else "speaker"
    what = f"no {kind}" if wanted is None else f"{'several' if found else 'no'} {direction} devices match {wanted!r}"
    if wanted is not None and not found:
        what = f"no {direction} device matches {wanted!r}"
    raise DeviceError(f"{what}; {_there_is(found or usable, direction)}")


def find_format(port: Any, device: Device, direction: Direction, rate: int | None) -> tuple[int, int]:
    """(rate in Hz, channels) in which a device can be opened: fewest channels first, its own rate first.

    Raises:
        DeviceError: none works, or not `rate`; says which rates do. A device that another program holds refuses all.
    """
    channels = device[f"{direction}s"]
    counts = sorted({c for c in (1, 2, channels) if c <= channels})
    rates = [rate] if rate else list(dict.fromkeys((device["sample_rate"], *RATES_HZ)))
    for candidate in rates:
        for count in counts:
            if _offers(port, device, direction, candidate, count):
                return candidate, count
    others = [r for r in RATES_HZ if any(_offers(port, device, direction, r, count) for count in counts)]
    if rate and others:
        raise DeviceError(
            f"{direction} device {device['name']!r} does not offer {rate} Hz; it offers "
            f"{', '.join(map(str, sorted(others)))} Hz. Leave the rate out to have it resampled"
        )
    raise DeviceError(
        f"{direction} device {device['name']!r} cannot be opened at any rate: it is taken by another program, or was "
        "unplugged. End that program, or choose another device (edge_sdk.list_devices())"
    )


def _offers(port: Any, device: Device, direction: Direction, rate: int, channels: int) -> bool:
    pyaudio = import_pyaudio()
    asked = {
        f"{direction}_device": device["index"],
        f"{direction}_channels": channels,
        f"{direction}_format": pyaudio.paFloat32,
    }
    with quiet_stderr():
        try:
            return bool(port.is_format_supported(rate, **asked))
        except (ValueError, OSError):
            return False


def _there_is(devices: list[Device], direction: Direction) -> str:
    names = ", ".join(f"{d['index']}: {d['name']!r}" for d in devices)
    return f"there is {names}" if names else f"this machine shows no {direction} device at all"


def _default(ask: Any) -> int | None:
    try:
        return int(ask()["index"])
    except OSError:  # there is none
        return None


def _describe(info: Any, default_input: int | None, default_output: int | None) -> Device:
    index = int(info["index"])
    return {
        "index": index,
        "name": str(info["name"]),
        "inputs": int(info["maxInputChannels"]),
        "outputs": int(info["maxOutputChannels"]),
        "sample_rate": int(info["defaultSampleRate"]),
        "default_input": index == default_input,
        "default_output": index == default_output,
    }


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """ALSA and JACK print pages to file descriptor 2 while PortAudio looks for devices; none of it is an error."""
    with PORTAUDIO:  # two threads here at once would put back each other's
        saved = os.dup(2)
        silent = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(silent, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(silent)
