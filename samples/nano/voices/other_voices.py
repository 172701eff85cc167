"""espeak-ng and flite as programs, where they are installed: other users, for variety. Nothing of them is shipped."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Sequence

import soundfile

from edge_sdk.errors import Error
from samples.nano.voices.hibari_voice import Spoken

# Voices of the two programs; the last of each is for evaluation alone (see speakers.py).
VOICES = {
    "espeak-ng": ("en-us", "en-us+f2", "en-gb", "en-us+m3", "en-gb-scotland", "en-us+f4"),
    "flite": ("slt", "rms", "kal16", "awb"),
}
_WORDS_A_MINUTE, _PITCH = 165, 50  # espeak's own middle


def installed() -> tuple[str, ...]:
    return tuple(name for name in VOICES if shutil.which(name))


def version(engine: str) -> str:
    """As the program says it, for the manifest."""
    done = subprocess.run([engine, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.-]*", (done.stdout + done.stderr).partition("version")[2] or done.stdout)
    return found[0] if found else "unknown"


def say(engine: str, voice: str, text: str, *, speed: float = 1.0, pitch: float = 1.0) -> Spoken:
    """Raises Error: the program is not there, or fails."""
    if engine == "espeak-ng":
        speeds = ["-s", str(round(_WORDS_A_MINUTE * speed)), "-p", str(round(_PITCH * pitch))]
        return _run(["espeak-ng", "--stdout", "-v", voice, *speeds, "--stdin"], text)
    stretch = ["--setf", f"duration_stretch={1 / speed:.3f}"]
    return _run(["flite", "-voice", voice, *stretch, "-t", text, "-o", "/dev/stdout"], "")


def _run(command: Sequence[str], text: str) -> Spoken:
    if shutil.which(command[0]) is None:
        raise Error(f"the program {command[0]} is not installed: apt-get install {command[0]}, or render without it")
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace")[:200].strip()
        raise Error(f"{command[0]} wrote no sound (exit status {done.returncode}): {said}")
    return Spoken(*soundfile.read(io.BytesIO(done.stdout), dtype="float32"))
