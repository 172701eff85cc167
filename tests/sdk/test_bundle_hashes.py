"""When a bundle is hashed and when it is known; `verify`, which runs its self-test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from tests import tolerances
from tests.sdk.small_bundle import WEIGHT, change, refuses, rewrite, settle

# -- the stamp


def test_hashed_once_and_again_when_a_file_was_touched(folder: Path, hashings: list[Path]) -> None:
    settle()
    for _ in range(3):
        Bundle.open(folder).close()
    assert len(hashings) == 1
    path = folder / "adder.bin"

    path.touch()
    settle()
    for _ in range(2):
        Bundle.open(folder).close()
    assert len(hashings) == 2

    status = path.stat()
    data = bytearray(path.read_bytes())  # changed, with its times put back
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refuses(folder, r"'adder\.bin' is damaged")
    data[100] ^= 1
    path.write_bytes(data)

    copy = path.with_name("copy")  # replaced by another file with the same times
    shutil.copy2(path, copy)
    settle()
    Bundle.open(folder).close()
    before = len(hashings)
    copy.replace(path)
    Bundle.open(folder).close()
    assert len(hashings) == before + 1


def test_what_was_written_this_moment_is_not_taken_as_known(folder: Path, hashings: list[Path]) -> None:
    """It may be written to again within the same tick of the clock."""
    (folder / "numbers.json").touch()
    for _ in range(2):
        Bundle.open(folder).close()
    assert len(hashings) == 2


def test_a_packed_bundle_is_hashed_once_too(packed: Path, hashings: list[Path]) -> None:
    settle()
    for _ in range(2):
        Bundle.open(packed).close()
    assert len(hashings) == 1
    data = bytearray(packed.read_bytes())
    data[data.index(WEIGHT.tobytes()) + 5] ^= 1
    packed.write_bytes(data)
    refuses(packed, r"'adder\.bin' is damaged")


def test_two_copies_do_not_displace_each_other(folder: Path, tmp_path: Path, hashings: list[Path]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "small2.bundle"))
    settle()
    for _ in range(3):
        for path in (folder, copy):
            Bundle.open(path).close()
    assert sorted(hashings) == sorted([folder, copy])


def test_what_is_replaced_while_it_is_hashed_is_not_stamped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Bundle.read
    settle()

    def read(self: Bundle, name: str) -> memoryview:
        data = plain(self, name)
        if name == "numbers.json":  # the last file; the first has been hashed
            weights = bytearray(WEIGHT.tobytes())
            weights[0] ^= 1
            (folder / "adder.bin").write_bytes(weights)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "read", read)
        Bundle.open(folder)
    refuses(folder, r"'adder\.bin' is damaged")


@pytest.mark.parametrize("stamp", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"adder.bin": 3}'])
def test_a_strange_stamp_counts_for_nothing(folder: Path, hashings: list[Path], stamp: bytes) -> None:
    settle()
    bundle = Bundle.open(folder)
    bundle._stamp_file().write_bytes(stamp)
    bundle.close()
    Bundle.open(folder).close()
    assert len(hashings) == 2


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))  # no directory can be made in a file
    Bundle.open(folder).close()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    Bundle.open(folder).close()


def test_many_threads_open_one_bundle(folder: Path) -> None:
    failures: list[BaseException] = []
    settle()

    def run() -> None:
        try:
            with Bundle.open(folder) as bundle:
                bundle.check_hashes()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Bundle.open(folder) as bundle:
        assert bundle._stamp_is_fresh()
        assert {p.suffix for p in bundle._stamp_file().parent.iterdir()} == {".json"}, "nothing is left behind"


def test_several_processes_share_a_bundle(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from edge_sdk.bundle import Bundle\n"
        "with Bundle.open(sys.argv[1]) as b:\n"
        "    call = b.runtime(threads=1).engine('adder').call()\n"
        "    call.set('x', np.ones((32, 32), np.float32)); call.fetch('y')\n"
        "    print(int(call.run()['y'].sum()))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "fresh")}
    running = [
        subprocess.Popen([sys.executable, "-c", program, folder], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert {process.communicate(timeout=60)[0].strip() for process in running} == {str(int(WEIGHT.sum()) + 1024)}


def test_one_runtime_for_all_who_ask_alike(folder: Path) -> None:
    with Bundle.open(folder) as bundle:
        assert bundle.runtime() is bundle.runtime("onnxruntime")
        assert bundle.runtime().engine("adder") is bundle.runtime().engine("adder")
        assert bundle.runtime(threads=1) is not bundle.runtime()


# -- verify


def test_verify_runs_the_recorded_self_test(speech_bundle: Bundle) -> None:
    report = speech_bundle.verify()
    assert report["text_ids_equal"]
    assert report["speech_ids_equal"]
    errors = [report[name] for name in ("rows_error", "text_scores_error", "speech_scores_error")]
    assert max(errors) < tolerances.SELFTEST_RELATIVE


def wrong(folder: Path, graph: str, factor: float) -> Iterator[str]:
    """Scale one large weight after the other; yields its name."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    data_file = folder / f"{'speech_head' if graph == 'speech_input' else graph}.bin"  # these two share one
    whole = data_file.read_bytes()
    for tensor in model.graph.initializer:
        place = {e.key: e.value for e in tensor.external_data}
        if not place or (graph != "encoder" and ("q_proj" in tensor.name or "k_proj" in tensor.name)):
            continue  # what follows these two normalises them
        data = np.frombuffer(whole, np.uint8).copy()
        begin = int(place["offset"])
        data[begin : begin + int(place["length"])].view(np.float32)[:] *= np.float32(factor)
        data_file.write_bytes(data.tobytes())
        change(folder, lambda m: None, rehash=True)
        yield tensor.name
    data_file.write_bytes(whole)


@pytest.mark.parametrize(
    ("graph", "names"), [("encoder", 16), ("backbone", 18), ("speech_input", 1), ("speech_head", 12)]
)
def test_wrong_weights_with_right_hashes_fail_the_self_test(
    speech_bundle_path: Path, tmp_path: Path, graph: str, names: int
) -> None:
    """One weight off by half a percent: no hash can know, but the recorded answer does."""
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    seen = []
    for name in wrong(folder, graph, 1.005):
        seen.append(name)
        if len(seen) % 3 == 1:  # every third, for time
            with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="does not give on this machine"):
                bundle.verify()
    assert len(seen) == names


def test_a_wrong_constant_fails_the_self_test(speech_bundle_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    change(folder, lambda m: m["model"]["backbone"].update(rope_theta=1e6))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="does not give on this machine"):
        bundle.verify()


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.update(text_ids=[]),
        lambda r: r.update(rows=r["rows"][:-1]),
        lambda r: r.update(rows=["x"] * len(r["rows"])),
        lambda r: r.update(rows={"a": 1}),
        lambda r: r.update(rows=[float("nan")] * len(r["rows"])),
        lambda r: r.update(text_scores=None),
        lambda r: r.update(rms="loud"),
        lambda r: r.update(picks={"text": "no", "speech": None}),
        lambda r: r["picks"].update(text=[10**9]),
        lambda r: r["picks"].update(speech=[-1] * len(r["picks"]["speech"])),
        lambda r: r["picks"].pop("text"),
        lambda r: r.update(samples=1),
        lambda r: r.pop("rms"),
        lambda r: r.update(more=1),
    ],
)
def test_a_strange_record_fails_the_self_test(speech_bundle_path: Path, tmp_path: Path, edit: Any) -> None:
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    recorded = json.loads((folder / "selftest.json").read_text())
    edit(recorded)
    rewrite(folder, "selftest.json", json.dumps(recorded).encode())
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match=r"self-test|does not give on this machine"):
        bundle.verify()


def test_verify_hashes_even_with_a_stamp(folder: Path, hashings: list[Path]) -> None:
    with Bundle.open(folder) as bundle:
        bundle.verify()
    assert len(hashings) == 2


def test_verify_finds_what_changed_after_opening(folder: Path) -> None:
    with Bundle.open(folder) as bundle:
        data = bytearray(WEIGHT.tobytes())
        data[7] ^= 1
        (folder / "adder.bin").write_bytes(data)
        with pytest.raises(BundleError, match=r"'adder\.bin' is damaged"):
            bundle.verify()
