"""The samples run as they stand, and the demo writes what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from edge_sdk.audio_devices import list_devices
from tests import speech_goldens

SAMPLES = Path(__file__).parents[1] / "samples"
QUESTION = str(speech_goldens.recording("syn1p3"))


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SAMPLES / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reply_to_wav(tmp_path: Path) -> None:
    out = run("reply_to_wav.py", QUESTION, str(tmp_path / "answer.wav"))
    assert "first sound after" in out
    assert len(soundfile.read(tmp_path / "answer.wav")[0]) > 0


def test_tools() -> None:
    assert run("tools.py").strip()


def test_while_speaking() -> None:
    out = run("while_speaking.py", QUESTION)
    assert "same ids: True" in out


def test_assistant_says_what_is_missing() -> None:
    """Without sound devices; with them the same loop runs in tests/sdk/test_run.py and test_assistant.py."""
    pytest.importorskip("pyaudio")
    if any(device["inputs"] for device in list_devices()):
        pytest.skip("there is a microphone here, and it would listen")
    done = subprocess.run([sys.executable, str(SAMPLES / "assistant.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no sound here: " in done.stderr
    assert "Traceback" not in done.stderr


def test_realtime_client(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("openai")
    question = tmp_path / "question.flac"
    question.write_bytes((Path(__file__).parent / "audio" / "speech" / "tts_hibari_cmd_stop.flac").read_bytes())
    from tests.server.running import serve

    with serve("--seed", "1") as server:
        address = f"http://127.0.0.1:{server.port}/v1"
        out = run("realtime_client.py", str(question), str(tmp_path / "answer.wav"), address)
    assert "[you speak]" in out
    assert "first sound" in out
    assert len(soundfile.read(tmp_path / "answer.wav")[0]) > 0


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = run("demo.py")
    assert "time to first audio" in out
    made = SAMPLES.parent / "out"
    assert len(soundfile.read(made / "reply.wav")[0]) > 0
    assert (made / "reply.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_samples_use_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    private = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    ]
    assert not private
    assert len(path.read_text().splitlines()) < 130
