"""A PulseAudio of the tests' own, with null sinks for speaker and microphone, and ALSA devices that lead to them.

It is an ordinary process with its own runtime folder; nobody's own PulseAudio is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Sinks by name; the microphone of each is what is played to it.
SINKS = {
    "speaker": "rate=48000 channels=2",
    "room": "rate=48000 channels=2",
    "mono44": "rate=44100 channels=1",
}


def missing() -> str:
    """Why there can be no such server here; "" if there can."""
    for tool in ("pulseaudio", "pactl", "pacat"):
        if not shutil.which(tool):
            return f"{tool} is not installed (apt install pulseaudio pulseaudio-utils libasound2-plugins)"
    try:
        import pyaudio  # noqa: F401
    except ImportError as e:
        return f"PyAudio is not installed ({e})"
    return ""


class Pulse:
    """A running server. ALSA names: `NAME_out` and `NAME_in` of each sink; `nowhere` leads to no sink."""

    def __init__(self, folder: Path) -> None:
        self._runtime = folder / "runtime"
        self._runtime.mkdir(mode=0o700)
        self.alsa = folder / "asound.conf"
        self.alsa.write_text(_alsa_config(), encoding="utf-8")
        self.env = {
            "XDG_RUNTIME_DIR": str(self._runtime),
            "PULSE_RUNTIME_PATH": str(self._runtime / "pulse"),
            "PULSE_SERVER": f"unix:{self._runtime / 'pulse' / 'native'}",
            "PULSE_COOKIE": str(folder / "cookie"),
            "HOME": str(folder),
            "ALSA_CONFIG_PATH": str(self.alsa),
        }
        self._log = folder / "pulse.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._warm: dict[str, subprocess.Popen[bytes]] = {}
        self._modules: dict[str, str] = {}

    def start(self) -> None:
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--use-pid-file=no",
            "--disable-shm=yes",
        ]
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [*command, "-L", "module-native-protocol-unix"], env={**os.environ, **self.env}, stdout=log, stderr=log
            )
        end = time.monotonic() + 20
        while self.control("info", check=False) is None:
            if self._server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self._log.read_text(encoding="utf-8"))
            time.sleep(0.1)
        self.plug(*SINKS)

    def plug(self, *names: str) -> None:
        """Load sinks. They are kept busy: an idle null sink takes two seconds' sound at once, then none for as long."""
        for name in names:
            module = self.control("load-module", "module-null-sink", f"sink_name={name}", *SINKS[name].split())
            assert module is not None
            self._modules[name] = module.strip()
            self._warm[name] = subprocess.Popen(
                ["pacat", "--raw", "--latency-msec=10", f"--device={name}", "/dev/zero"],
                env={**os.environ, **self.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        time.sleep(2.2)

    def unplug(self, *names: str) -> None:
        for name in names:
            self.control("unload-module", self._modules.pop(name))
            self._end(self._warm.pop(name))

    @contextmanager
    def echo(self, delay_ms: int, gain_db: float) -> Iterator[None]:
        """Within, what `speaker` plays is heard by `room`'s microphone too."""
        module = self.control(
            "load-module", "module-loopback", "source=speaker.monitor", "sink=room", f"latency_msec={delay_ms}",
            "adjust_time=0",
        )  # fmt: skip
        assert module is not None
        try:
            inputs = json.loads(self.control("--format=json", "list", "sink-inputs") or "[]")
            (index,) = [i["index"] for i in inputs if str(i["owner_module"]) == module.strip()]
            self.control("set-sink-input-volume", str(index), f"{gain_db}dB")
            yield
        finally:
            self.control("unload-module", module.strip())

    def stop(self) -> None:
        for process in (*self._warm.values(), self._server):
            if process is not None:
                self._end(process)
        self._warm, self._server = {}, None

    def control(self, *words: str, check: bool = True) -> str | None:
        done = subprocess.run(
            ["pactl", *words], env={**os.environ, **self.env}, capture_output=True, text=True, timeout=20, check=check
        )
        return done.stdout if done.returncode == 0 else None

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def pulse_server(folder: Path) -> Iterator[Pulse]:
    """The server, and this process's environment set to it; skips with the reason where there can be none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    pulse = Pulse(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pulse.env.items():
            if name != "HOME":
                patch.setenv(name, value)
        try:
            pulse.start()
            yield pulse
        finally:
            pulse.stop()


def _alsa_config() -> str:
    """What ALSA has by itself (PortAudio crashes without), and these devices."""
    devices = "".join(
        f"pcm.{name}_out {{ type pulse device {name} }}\npcm.{name}_in {{ type pulse device {name}.monitor }}\n"
        for name in SINKS
    )
    return f"</usr/share/alsa/alsa.conf>\n{devices}pcm.nowhere {{ type pulse device nowhere }}\n"
