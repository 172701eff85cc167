"""The command line: exit statuses, JSON, no traceback for a user's mistake."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from edge_sdk import cli
from edge_sdk.bundle import Bundle
from tests import speech_goldens
from tests.bundles import RANDOM
from tests.vocoder import goldens as vocoder_goldens

BUNDLE = str(RANDOM)
QUICK = ["--max-new-tokens", "8", "--seed", "1"]
QUESTION = str(speech_goldens.recording("syn1p3"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    found = capsys.readouterr()
    return status, found.out, found.err


def test_chat_writes_a_wav_and_prints_the_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "reply.wav"
    status, text, notes = run(capsys, "chat", BUNDLE, "--audio", QUESTION, "--out", str(out), *QUICK)
    assert status == 0
    assert text.strip()
    assert "first sound after" in notes
    pcm, rate = soundfile.read(out)
    assert rate == 24000
    assert len(pcm) % 480 == 0
    assert abs(pcm).max() > 0.01


def test_chat_json(capsys: pytest.CaptureFixture[str]) -> None:
    replies = [json.loads(run(capsys, "chat", BUNDLE, "--text", "Hi", "--json", *QUICK)[1]) for _ in range(2)]
    assert replies[0]["text_ids"] == replies[1]["text_ids"]
    assert replies[0]["speech_ids"] == replies[1]["speech_ids"]
    assert replies[0]["timings"]["seed"] == 1
    assert replies[0]["finish_reason"] in ("stop", "length")


def test_chat_without_speech_and_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO(Path(QUESTION).read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin())
    status, out, _ = run(capsys, "chat", BUNDLE, "--audio", "-", "--no-speech", "--json", *QUICK)
    assert status == 0
    assert json.loads(out)["speech_ids"] == []


def test_a_conversation_in_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = f"Hi\n\n/audio {QUESTION}\n/audio nowhere.wav\n/what\n/save {tmp_path}/s.bin\n/reset\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, out, notes = run(capsys, "chat", BUNDLE, *QUICK)
    assert status == 0
    assert len(out.splitlines()) >= 2
    assert "nowhere.wav" in notes
    assert "unknown command /what" in notes
    assert (tmp_path / "s.bin").exists()


def test_a_conversation_in_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAnd you?\n"))
    status, out, _ = run(capsys, "chat", BUNDLE, "--json", *QUICK)
    first, end = json.JSONDecoder().raw_decode(out)
    second = json.loads(out[end:])
    assert (status, first["out"], len(second["text_ids"]) > 0) == (0, None, True)


def test_export_and_verify_int4(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle, checkpoint = str(tmp_path / "tiny.bundle"), str(speech_goldens.CHECKPOINT)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rules: [{match: '*.layers.0.*', scheme: fp16}]")
    arguments = ("--precision", "int4", "--block", "32", "--recipe", str(recipe))
    assert run(capsys, "export", checkpoint, "-o", bundle, *arguments)[0] == 0
    status, out, _ = run(capsys, "verify", bundle, "--against", checkpoint, "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (0, True)
    assert {line["against"] for line in report["stages"]} == {"same", "fp32"}
    assert {line["scheme"] for line in report["weights"]} == {"fp16", "int4, blocks of 32", "int8, blocks of 32"}
    status, out, _ = run(capsys, "verify", bundle, "--against", checkpoint)
    assert status == 0
    assert "audio_invert_tower.crq_transformer.layers.1.mlp.up_proj.weight" in out
    recipe.write_text("rules: [{match: 'no.such.tensor', scheme: fp16}]")
    status, _, problem = run(capsys, "export", checkpoint, "-o", bundle, "--overwrite", "--recipe", str(recipe))
    assert (status, "'no.such.tensor' decides nothing" in problem) == (1, True)


def test_a_conversation_goes_on_after_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = f"/save\n/save {tmp_path}\n/audio\n/out {tmp_path}/no/x.wav\nhalf \udcff\nHi\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, out, notes = run(capsys, "chat", BUNDLE, *QUICK)
    assert status == 0
    assert len(notes.splitlines()) == 5
    assert all(line.startswith("edge-sdk: ") for line in notes.splitlines())
    assert out.strip()


def test_an_empty_question_is_no_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, problem = run(capsys, "chat", BUNDLE, "--text", "", "--json", *QUICK)
    assert (status, out) == (1, "")
    assert "nothing to answer" in problem


def test_the_place_for_the_sound_is_checked_before_the_reply(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edge_sdk.chat.Chat.send", lambda *_: pytest.fail("a reply was made"))
    for out in (tmp_path, tmp_path / "no" / "x.wav"):
        status, _, problem = run(capsys, "chat", BUNDLE, "--text", "Hi", "--out", str(out), *QUICK)
        assert status == 1
        assert problem.startswith("edge-sdk: cannot write")


def test_an_answer_is_printed_although_its_sound_cannot_be_saved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_sdk.audio_file.write_file", full)
    status, text, problem = run(capsys, "chat", BUNDLE, "--text", "Hi", "--out", str(tmp_path / "x.wav"), *QUICK)
    assert status == 1
    assert text.strip()
    assert "No space left on device" in problem


def test_an_export_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint, vocoder = str(speech_goldens.CHECKPOINT), str(vocoder_goldens.TINY)
    for options, named in (
        (["--vocoder", vocoder, "--noise-frames", "999999"], "asked for 999999"),
        (["--vocoder", vocoder, "--voice", "a=x.npy", "--voice", "a=y.npy"], "--voice names 'a' twice"),
    ):
        status, _, problem = run(capsys, "export", checkpoint, "-o", str(tmp_path / "x.bundle"), *options)
        assert status == 1
        assert named in problem
        assert not list(tmp_path.iterdir())


def test_export_verify_inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = str(tmp_path / "tiny.bundle")
    checkpoint = str(speech_goldens.CHECKPOINT)
    assert run(capsys, "export", checkpoint, "-o", bundle)[0] == 0
    status, _, problem = run(capsys, "export", checkpoint, "-o", bundle)
    assert (status, "exists already" in problem) == (1, True)
    assert run(capsys, "export", checkpoint, "-o", bundle, "--overwrite")[0] == 0
    status, out, _ = run(capsys, "verify", bundle, "--against", checkpoint, "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (0, True)
    assert {s["stage"] for s in report["stages"]} >= {"encoder rows", "text scores", "speech scores"}
    status, out, _ = run(capsys, "verify", bundle, "--against", checkpoint)
    assert "DIFFERS" not in out
    status, out, _ = run(capsys, "inspect", bundle)
    assert "backbone" in out
    assert json.loads(run(capsys, "inspect", bundle, "--json")[1])["format_version"] == 1


def test_verify_fails_on_a_damaged_bundle(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.bundle"
    content = bytearray(RANDOM.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    status, _, problem = run(capsys, "verify", str(damaged))
    assert status == 1
    assert "damaged" in problem


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["runtimes"]["onnxruntime"] == ""
    assert report["native"]["problem"] or report["native"]["isa"] in ("plain", "avx2", "avx512", "neon")
    assert report["machine"]["memory_total"] > report["machine"]["memory_free"] > 0
    with Bundle.open() as bundle:
        assert report["default_bundle"].startswith(bundle.name)
    status, out, _ = run(capsys, "doctor")
    assert "ready" in out


def test_doctor_without_the_native_core(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and what it would bring."""
    monkeypatch.setenv("EDGE_SDK_NATIVE", "off")
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    lines = {line[:12].strip(): line for line in out.splitlines()}
    assert "not here: EDGE_SDK_NATIVE is off - the C API" in lines["native core"]
    assert "not here: EDGE_SDK_NATIVE is off - the speech head in one call" in lines["native ops"]


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "bench", BUNDLE, "--steps", "30", "--json")
    found = json.loads(out)
    assert status == 0
    assert {s["stage"] for s in found["stages"]} >= {
        "backbone step",
        "speech head group",
        "flow chunk",
        "waveform chunk",
    }
    assert found["read_gb_s"] > 0.1
    assert found["overhead"]["steps"] == 30
    assert found["reply"]["audio_s"] > 0
    status, out, _ = run(capsys, "bench", BUNDLE, "--steps", "12")
    assert "outside the sessions" in out
    assert run(capsys, "bench", BUNDLE, "--steps", "2")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "nowhere.bundle"],
        ["chat", BUNDLE, "--audio", "nowhere.wav"],
        ["chat", BUNDLE, "--text", "x", "--voice", "nobody"],
        ["chat", BUNDLE, "--text", "x", "--runtime", "abacus"],
        ["chat", BUNDLE, "--text", "x", "--max-new-tokens", "0"],
        ["chat", BUNDLE, "--text", "x", "--no-speech", "--out", "x.wav", *QUICK],
        ["verify", "nowhere.bundle"],
        ["inspect", "/dev/null"],
        ["export", "nowhere", "-o", "x.bundle"],
        ["export", "-o", "x.bundle"],
        ["export", str(speech_goldens.CHECKPOINT), "-o", "x.bundle", "--voice", "noequals"],
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status, _, problem = run(capsys, *arguments)
    assert status == 1
    assert problem.startswith("edge-sdk: ")
    assert "Traceback" not in problem
    assert not Path("x.bundle").exists()


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["chat", BUNDLE, "--threads", "many"], ["export", "x"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", "inspect", BUNDLE, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["name"] == "demo-random"
    helped = subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in helped.stdout for command in cli.COMMANDS)


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"{shlex.quote(sys.executable)} -m edge_sdk.cli"
    return subprocess.run(
        ["bash", "-c", command.replace("edge-sdk", program)],
        capture_output=True, encoding="utf-8", timeout=60, env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "inspect --json", "--help"])
def test_output_that_cannot_be_written_is_one_line(command: str) -> None:
    full = shell(f"edge-sdk {command} > /dev/full")
    assert (full.returncode, full.stderr) == (1, "edge-sdk: No space left on device\n")
    closed = shell(f"edge-sdk {command} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")


def test_closed_input_is_an_empty_one() -> None:
    done = shell("edge-sdk chat <&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_any_character_can_be_printed(speech_bundle_path: Path) -> None:
    say = f"edge-sdk chat {speech_bundle_path} --text Hi --max-new-tokens 12 --seed 1"
    plain, ascii_only = shell(f"{say} --json"), shell(f"{say} --json", PYTHONIOENCODING="ascii")
    text = json.loads(plain.stdout)["text"]
    assert not text.isascii()
    assert json.loads(ascii_only.stdout)["text"] == text
    printed = shell(say, PYTHONIOENCODING="ascii").stdout
    assert printed.rstrip("\n") == text.encode("ascii", "backslashreplace").decode().rstrip("\n")


def test_bytes_that_are_no_text_are_one_line() -> None:
    done = shell("edge-sdk chat --text $'a\\xff'")
    assert done.returncode == 1
    assert done.stderr.startswith("edge-sdk: text holds a lone surrogate")
    talk = shell("printf 'a\\xff\\nHi\\n' | edge-sdk chat --max-new-tokens 4", PYTHONIOENCODING="utf-8")
    assert talk.returncode == 0
    assert talk.stdout.strip()
    assert talk.stderr.startswith("edge-sdk: text holds a lone surrogate")


def test_the_keyboard_ends_it_also_while_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", stop)
    assert run(capsys, "inspect") == (130, "", "edge-sdk: interrupted\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk.cli", "inspect", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout
    assert writer.stderr
    writer.stdout.close()
    problem: Any = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait() == 0
    assert b"Traceback" not in problem
