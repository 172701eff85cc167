"""`edge-sdk run` and the sample over real audio I/O (PulseAudio's null sinks), its views, and users' mistakes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.assistant_events import (
    Answered,
    Calling,
    Failed,
    Hearing,
    Interrupted,
    Level,
    Listening,
    Said,
    Speaking,
    Thinking,
)
from edge_sdk.cli import main
from edge_sdk.commands.conversation_view import JsonView, LineView, LiveView, budget_line
from edge_sdk.events import Reply, Timings
from edge_sdk.turn_timings import Marks, budget
from tests import speech
from tests.bundles import RANDOM
from tests.pulse import Pulse, pulse_server


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with pulse_server(tmp_path_factory.mktemp("pulse")) as server:
        yield server


class Program:
    """A command that runs; its lines are read as they come. Ended by Ctrl-C."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **env}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []

    def until(self, word: str) -> str:
        assert self._process.stdout
        giving_up = threading.Timer(90, self._process.kill)
        giving_up.start()
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if word in line:
                giving_up.cancel()
                return line
        assert self._process.stderr
        raise AssertionError(f"no {word!r} came: {self.lines[-5:]} {self._process.stderr.read()}")

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """The exit status and what was said on standard error."""
        self._process.send_signal(number)
        out, errors = self._process.communicate(timeout=60)
        self.lines += out.splitlines()
        return self._process.returncode, errors


def say(pulse: Pulse, name: str) -> None:
    """The user speaks into the microphone."""
    pcm = (speech.scene(0.3, name, 0.5) * 32767).astype("<i2").tobytes()
    command = ["pacat", "--raw", "--device=room", "--rate=16000", "--channels=1", "--format=s16le"]
    subprocess.run(command, input=pcm, env={**os.environ, **pulse.env}, check=True, timeout=60)


def test_a_spoken_question_is_answered_through_the_devices(pulse: Pulse, tmp_path: Path) -> None:
    program = Program(
        "-m", "edge_sdk.cli", "run", str(RANDOM), "--json", "--input", "room_in", "--output", "speaker_out",
        "--echo", "off",
        "--max-new-tokens", "12", "--trace", str(tmp_path / "trace.json"), "--session", str(tmp_path / "session.bin"),
        env=pulse.env,
    )  # fmt: skip
    program.until('"Listening"')
    time.sleep(1.0)  # PulseAudio drops some sound while it takes streams in
    say(pulse, "tts_joe_q_weather")
    answered = json.loads(program.until('"Answered"'))
    status, errors = program.end()
    assert status == 0, errors
    assert "Traceback" not in errors
    events = [json.loads(line)["event"] for line in program.lines]
    assert events.index("Hearing") < events.index("Thinking") < events.index("Answered")
    timings = answered["timings"]
    assert timings["response_ms"] is None or timings["response_ms"] >= timings["endpoint_wait_ms"]
    assert json.loads((tmp_path / "trace.json").read_text())[-1]["name"] == "end"
    assert (tmp_path / "session.bin").stat().st_size > 0


def test_sigterm_ends_it_as_ctrl_c_does(pulse: Pulse, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    program = Program(
        "-m", "edge_sdk.cli", "run", str(RANDOM), "--json", "--input", "room_in", "--output", "speaker_out",
        "--trace", str(trace),
        env=pulse.env,
    )  # fmt: skip
    program.until('"Listening"')
    status, errors = program.end(signal.SIGTERM)
    assert (status, "Traceback" in errors) == (0, False), errors
    assert json.loads(trace.read_text())[-1]["name"] == "end"


@pytest.mark.slow
def test_the_sample_answers_through_the_default_devices(pulse: Pulse) -> None:
    pulse.control("set-default-source", "room.monitor")
    pulse.control("set-default-sink", "speaker")
    program = Program(str(Path(__file__).parents[2] / "samples" / "assistant.py"), env=pulse.env)
    program.until("(listening)")
    time.sleep(1.0)
    for name in ("tts_joe_q_weather", "tts_joe_cmd_off"):
        say(pulse, name)
        program.until("[first sound after")
        program.until("(listening)")
    status, errors = program.end()
    assert (status, "Traceback" in errors) == (0, False), errors


class Terminal:
    """A command in a terminal of its own: keys go in, and Ctrl-C is the terminal's."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        try:
            self.keyboard, self._line = pty.openpty()
        except OSError as e:
            pytest.skip(f"no terminal can be had here ({e}); in a chroot, mount devpts on /dev/pts")
        self.modes = termios.tcgetattr(self._line)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **env, "TERM": "xterm"}, stdin=self._line,
            stdout=self._line, stderr=self._line, start_new_session=True, preexec_fn=self._own,
        )  # fmt: skip

    @staticmethod
    def _own() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def until(self, words: str, seconds: float = 90) -> None:
        """Wait for them to be shown after what was waited for before."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < end, f"no {words!r}: {self.shown[-500:]}"
            if select.select([self.keyboard], [], [], 0.2)[0]:
                self.shown += os.read(self.keyboard, 4096).decode(errors="replace")
        self.shown = self.shown.split(words, 1)[1]

    def drain(self, seconds: float) -> int:
        """The exit status, reading what is shown meanwhile so that nothing waits for it."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.keyboard], [], [], 0.1)[0]:
                self.shown += os.read(self.keyboard, 4096).decode(errors="replace")
        status = self.process.poll()
        assert status is not None, "it goes on"
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.keyboard)
        os.close(self._line)


@pytest.fixture
def terminal(pulse: Pulse) -> Iterator[Terminal]:
    pytest.importorskip("rich")
    opened = Terminal(
        "-m", "edge_sdk.cli", "run", str(RANDOM), "--push-to-talk", "--input", "room_in", "--output", "speaker_out",
        "--echo", "off",
        "--max-new-tokens", "12", env=pulse.env,
    )  # fmt: skip
    yield opened
    opened.close()


def test_push_to_talk_in_a_terminal_and_ctrl_c(pulse: Pulse, terminal: Terminal) -> None:
    terminal.until("listening")
    os.write(terminal.keyboard, b"  ")  # down and up at once: both keys are seen, and it is too short for a question
    os.write(terminal.keyboard, b" ")
    terminal.until("hearing you")
    say(pulse, "tts_joe_cmd_off")
    os.write(terminal.keyboard, b" ")
    terminal.until("first sound after")
    os.write(terminal.keyboard, b"\x03")
    assert terminal.drain(30) == 0
    assert "Traceback" not in terminal.shown
    assert termios.tcgetattr(terminal._line) == terminal.modes


def test_ctrl_c_while_the_key_is_down(terminal: Terminal) -> None:
    terminal.until("listening")
    os.write(terminal.keyboard, b" ")
    terminal.until("hearing you")
    os.write(terminal.keyboard, b"\x03")
    assert terminal.drain(30) == 0
    assert "Traceback" not in terminal.shown
    assert termios.tcgetattr(terminal._line) == terminal.modes


def test_devices_are_listed(pulse: Pulse, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--list-devices"]) == 0
    assert "room_in" in capsys.readouterr().out
    assert main(["run", "--list-devices", "--json"]) == 0
    assert any(device["name"] == "room_in" for device in json.loads(capsys.readouterr().out))


def test_mistakes_are_one_line(pulse: Pulse, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    devices = ["--input", "room_in", "--output", "speaker_out"]
    for arguments in (
        ["--input", "no such thing"],
        [*devices, "no.bundle"],
        [*devices, "--trace", str(tmp_path / "none" / "trace.json")],
        [*devices, "--wake-word", "hey_you"],
        [*devices, "--wake-word", ""],
        [*devices, "--session", ""],
        [*devices, "--output", "99"],
        [*devices, "--push-to-talk"],  # without a keyboard
        [*devices, "--session", str(tmp_path)],
    ):
        assert main(["run", "--echo", "off", *arguments]) == 1
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith("edge-sdk: "), said


# -- the views


def answer() -> Answered:
    marks = Marks(began_s=1.0, speech_end_s=2.0, endpoint_s=2.7, read_s=2.71, decided_s=2.72, asked_s=2.73,
                  encoded_s=2.74, first_audio_s=2.9, played_s=2.95, limit_ms=700)  # fmt: skip
    made = Timings(ttft_ms=60, ttfa_ms=160, prefill_ms=20, total_ms=500, audio_s=1.0)
    timings = budget(marks, made, played_ms=400, interrupted=True)
    reply = Reply("hello", speech.silence(1.0), 24000, (1,), (), (), "interrupted", made)
    return Answered(4.0, 1, reply, timings)


def test_the_budget_adds_up() -> None:
    t = answer().timings
    assert round(t.response_ms or 0) == 950
    parts = (
        t.endpoint_wait_ms + t.capture_ms + t.vad_ms + t.queue_ms + t.encode_ms + t.prefill_ms + t.first_token_ms
        + (t.first_audio_ms or 0) + (t.playback_ms or 0)
    )  # fmt: skip
    assert round(parts) == 940  # the rest went between threads
    assert round(t.engine_ms) == 160
    assert budget_line(t) == (
        "ms: endpoint wait 700  capture 10  vad 10  queue 10  encode 10  prefill 20  first token 30  "
        "first audio 100  playback 50"
    )


EVENTS: list[Any] = [
    Listening(0.0), Level(0.1, -30.0, 0.9, False), Hearing(1.2, 1, 1.0), Thinking(2.7, 1, 1.2),
    Calling(2.8, 1, "time", {"zone": "+00:00"}), Speaking(2.9, 1, 950.0), Said(2.9, 1, " hello"),
    Interrupted(3.3, 1, 400.0, 3.2), Failed(3.4, 2, "no room"),
]  # fmt: skip


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonView() as view:
        for event in [*EVENTS, answer()]:
            view.show(event)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["event"] for f in found] == [type(e).__name__ for e in [*EVENTS, answer()]]
    assert found[-1]["text"] == "hello"
    assert found[-1]["timings"]["interrupted"] is True


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with LineView(timings=True) as view:
        for event in [*EVENTS, answer()]:
            view.show(event)
    out = capsys.readouterr().out
    for part in ("[listening]", "[time {", "[no room]", "\nhello\n", "first sound after 950 ms", "endpoint wait 700"):
        assert part in out, part


def test_the_live_view(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView(timings=True, push_to_talk=True) as view:
        for event in EVENTS:
            view.show(event)
        shown = str(view._lines())
        assert "interrupted" in shown
        assert "█" in shown
        assert "hello" in shown
        assert "space: talk" in shown
        view.show(answer())
        assert "model took 160 ms" in str(view._lines())
    assert "endpoint wait 700" in capsys.readouterr().out
