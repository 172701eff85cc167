"""A merge that is killed or out of disk leaves nothing under the name, and is taken up; memory stays small."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import cli
from edge_sdk.errors import Error, ExportError
from edge_sdk.export.bundle_writer import work_path
from edge_sdk.export.merge import merge_checkpoints
from tests import tiny
from tests.test_imports import run

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHARDS = 4
MB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, a and b, and what comes of them, c."""
    folder = tmp_path_factory.mktemp("merge")
    merge_checkpoints(
        tiny.write(folder / "a", 1, shards=SHARDS), tiny.write(folder / "b", 2, dtype="bfloat16"), folder / "c"
    )
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def trial(folder: Path, output: Path, at: int, how: str, report: Path) -> None:
    """Run in a process of its own: a merge that is hit at its `at`-th moment.

    Moments are every touch of what lies around the output and every piece; for "full", what needs the disk. With
    "limit" no file can have more than `at` bytes.
    """
    count, surroundings = 0, str(output.parent)

    def hit(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == at and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == at and how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(surroundings):
            makes = event == "os.mkdir" and not Path(arguments[0]).is_dir()  # one that is there is no need
            needs_disk = makes or event == "os.rename" or (event == "open" and arguments[2] & WRITING)
            if needs_disk or how == "kill":
                hit()

    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
    else:
        sys.addaudithook(audit)
    try:
        progress = hit if how == "kill" else None
        merge_checkpoints(folder / "a", folder / "b", output, resume=True, progress=progress)
        outcome = "done"
    except Error as e:
        outcome = f"{type(e).__name__}: {e}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps([outcome, count]))


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edge_sdk.export.merge", "tests.tiny", "tests.export.test_merge_interrupted"])
    return context


def hit(processes: Any, folder: Path, output: Path, at: int, how: str) -> tuple[int | None, str, int]:
    """Exit code, what the merge said, and how many moments there were."""
    report = output.parent.parent / "report"
    report.unlink(missing_ok=True)
    process = processes.Process(target=trial, args=(folder, output, at, how, report))
    process.start()
    process.join(60)
    outcome, count = json.loads(report.read_text()) if report.exists() else ("", 0)
    return process.exitcode, outcome, count


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "c"


def test_killed_at_any_moment(processes: Any, folder: Path, place: Path) -> None:
    """kill -9: what was finished is kept by the next run, and the result is the same."""
    code, outcome, total = hit(processes, folder, place, 0, "kill")
    assert (code, outcome) == (0, "done")
    assert total > 100
    shutil.rmtree(place)
    kept = published = 0
    for at in [*range(1, total - 9, 17), *range(total - 9, total + 1, 3)]:
        code, _, _ = hit(processes, folder, place, at, "kill")
        assert code == -signal.SIGKILL
        if place.exists():  # killed while it cleaned up behind itself
            published += 1
        else:
            record = work_path(place) / "record.json"
            names = json.loads(record.read_text())["files"] if record.exists() else {}
            shards = [name for name in names if name.endswith(".safetensors")]
            inodes = {name: (work_path(place) / "bundle" / name).stat().st_ino for name in shards}
            merge_checkpoints(folder / "a", folder / "b", place, resume=True)
            assert {name: (place / name).stat().st_ino for name in shards} == inodes
            assert [p.name for p in place.parent.iterdir()] == ["c"]
            kept += len(shards)
        assert contents(place) == contents(folder / "c")
        shutil.rmtree(place)
        shutil.rmtree(work_path(place), ignore_errors=True)
    assert kept > SHARDS
    assert 0 < published < 4


def test_out_of_disk_at_any_moment(processes: Any, folder: Path, place: Path) -> None:
    """Making a file or a folder, renaming: each may be what the disk refuses."""
    code, outcome, total = hit(processes, folder, place, 0, "full")
    assert (code, outcome) == (0, "done")
    assert total > 20
    shutil.rmtree(place)
    for at in range(1, total + 1, 2):
        code, outcome, _ = hit(processes, folder, place, at, "full")
        assert code == 0
        assert outcome.startswith("ExportError: the disk is full while writing"), outcome
        assert "run again with --resume" in outcome
        assert not place.exists()
        if at % 3 == 0:
            merge_checkpoints(folder / "a", folder / "b", place, resume=True)
            assert contents(place) == contents(folder / "c")
            shutil.rmtree(place)
        shutil.rmtree(work_path(place), ignore_errors=True)


def test_a_file_that_cannot_grow(processes: Any, folder: Path, place: Path) -> None:
    sizes = sorted({p.stat().st_size for p in (folder / "c").glob("*.safetensors")})
    for limit in (0, 100, *(size - 1 for size in sizes)):
        code, outcome, _ = hit(processes, folder, place, limit, "limit")
        assert code == 0
        assert outcome.startswith("ExportError: cannot write"), (limit, outcome)
        assert not place.exists()
    assert hit(processes, folder, place, 1 << 30, "limit")[1] == "done"
    assert contents(place) == contents(folder / "c")


def test_a_disk_that_is_too_small(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(ExportError, match=r"0\.0 GB are needed for '.*/c', 0\.0 GB are free there"):
        merge_checkpoints(folder / "a", folder / "b", place)
    assert not place.exists()


def test_other_choices_take_nothing_up(folder: Path, place: Path) -> None:
    """What a run with another alpha had finished is no part of this one."""

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("merging model-00003"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(folder / "a", folder / "b", place, 0.25, progress=stop)
    assert not place.exists()
    merge_checkpoints(folder / "a", folder / "b", place, 0.5, resume=True)
    assert contents(place) == contents(folder / "c")


def test_two_at_once(folder: Path, place: Path) -> None:
    def second(what: str, done: int, total: int) -> None:
        if what.startswith("merging model-00002"):
            with pytest.raises(ExportError, match="another run is writing to"):
                merge_checkpoints(folder / "a", folder / "b", place)

    merge_checkpoints(folder / "a", folder / "b", place, progress=second)
    assert contents(place) == contents(folder / "c")


# -- memory, packages

PEAK = """
import json, re, sys
from pathlib import Path
from edge_sdk.export.merge import merge_checkpoints
def peak():  # of this program; what getrusage says may be that of the process it was started from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
merge_checkpoints(*sys.argv[1:4], float(sys.argv[4]))
print(json.dumps([before, peak()]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    """88 and 132 MB, nearly all of it one tensor: 20 MB may be in memory. Measured 9, most of it blocks to hash."""
    a, b = (
        tiny.write(tmp_path / name, seed, dtype=dtype, vocab_size=1_100_000, tied=True)
        for name, seed, dtype in zip("ab", (1, 2), dtypes, strict=True)
    )
    size = sum((f / "model.safetensors").stat().st_size for f in (a, b))
    before, after = run(PEAK, a, b, tmp_path / "c", 0.5)
    assert size > 80 * MB
    assert after - before < 20 * MB


def test_numpy_is_enough(folder: Path, place: Path) -> None:
    before, _ = run(
        PEAK, folder / "a", folder / "b", place, 0.5, only=("numpy", "edge_sdk", "__editable___edge_sdk_0_1_0_finder")
    )
    assert before
    assert contents(place) == contents(folder / "c")


# -- the command


def test_the_command(folder: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", str(folder / "a"), str(folder / "b"), "-o", str(place)]
    assert cli.main([*arguments, "--alpha", "0.5", "--json"]) == 0
    found = capsys.readouterr()
    report = json.loads(found.out)
    assert (report["alpha"], report["output"]) == (0.5, str(place))
    assert report["other_dtypes"] == {"BF16 -> F32": report["tensors"]}
    assert report["size_bytes"] == sum(map(len, contents(place).values()))
    assert found.err == ""
    assert contents(place) == contents(folder / "c")
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"edge-sdk: '{place}' exists already; choose another name or remove it\n"
    shutil.rmtree(place)
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{place}: {report['tensors']} tensors, ")
    assert "BF16 -> F32" in said


@pytest.mark.parametrize("alpha", ["nan", "-0.5", "1.5", "half", "inf"])
def test_alpha_that_is_none(folder: Path, place: Path, alpha: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["merge", str(folder / "a"), str(folder / "b"), f"--alpha={alpha}", "-o", str(place)])
    assert caught.value.code == 2
    assert f"'{alpha}' is no number from 0 to 1" in capsys.readouterr().err


def test_ctrl_c_says_so_and_leaves_nothing_under_the_name(folder: Path, place: Path) -> None:
    """And the same command with --resume ends it."""
    program = (
        "import sys\nfrom edge_sdk import cli\nfrom edge_sdk.commands import merge\n"
        "def stop(what, done, total):\n"
        "    if 'model-00002' in what: raise KeyboardInterrupt\n"
        "merge.progress = lambda: stop\nsys.exit(cli.main())\n"
    )
    arguments = ["merge", str(folder / "a"), str(folder / "b"), "-o", str(place)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "edge-sdk: interrupted\n")
    assert not place.exists()
    assert cli.main([*arguments, "--resume"]) == 0
    assert contents(place) == contents(folder / "c")
