"""Importing costs nothing and needs NumPy alone; the device needs no exporter, the exporter no torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.export.pipeline import export_bundle
from tests import speech_goldens as goldens
from tests import tiny

# Installed first of all: a world in which only these top names and the standard library exist.
WORLD = """
import sys
class World:
    def __init__(self, names, blocked):
        self.names, self.blocked = names, blocked
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        known = not self.names or root in self.names or root in sys.stdlib_module_names
        if not known or root in self.blocked or name in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
"""


def run(program: str, *arguments: Any, only: tuple[str, ...] = (), blocked: tuple[str, ...] = ()) -> Any:
    """Run a program that prints one JSON value."""
    world = f"{WORLD}\nsys.meta_path.insert(0, World({only!r}, {blocked!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", world + program, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules_of(package: str) -> list[str]:
    """Every module of an installed package, found by its files."""
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] != "__main__":
            found.append(".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))))
    return found


def test_every_module_of_the_device_imports_with_numpy_alone() -> None:
    modules = modules_of("edge_sdk") + modules_of("edge_sdk.runtimes")
    assert {"edge_sdk.chat", "edge_sdk.vocoder", "edge_sdk.cli", "edge_sdk.runtimes.ort"} <= set(modules)
    assert not any(name.startswith("edge_sdk.export") for name in modules)
    loaded = run(
        "import importlib, json\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))",
        json.dumps(modules),
        only=("numpy", "edge_sdk"),
    )
    assert set(modules) <= set(loaded)
    assert not [name for name in loaded if name.startswith("edge_sdk.export")]


def test_importing_the_face_loads_next_to_nothing() -> None:
    """Neither another package nor any of our own parts beside the errors; each comes when it is asked for."""
    loaded = run(
        "import json, numpy\nbefore = set(sys.modules)\nimport edge_sdk\n"
        "first = sorted(set(sys.modules) - before)\nedge_sdk.Bundle\n"
        "print(json.dumps([first, sorted(set(sys.modules) - before)]))"
    )
    roots = {name.partition(".")[0] for name in loaded[0]}
    assert roots <= {"edge_sdk"} | set(sys.stdlib_module_names)
    assert [name for name in loaded[0] if name.startswith("edge_sdk.")] == ["edge_sdk.errors"]
    assert "edge_sdk.bundle" in loaded[1]
    assert "edge_sdk.chat" not in loaded[1]


def test_every_public_name_can_be_had() -> None:
    names = run("import json, edge_sdk\nprint(json.dumps([n for n in edge_sdk.__all__ if getattr(edge_sdk, n)]))")
    import edge_sdk

    assert names == edge_sdk.__all__ == sorted(edge_sdk.__all__)
    assert set(edge_sdk.__all__) <= set(dir(edge_sdk))
    with pytest.raises(AttributeError, match="module 'edge_sdk' has no attribute 'Chatt'"):
        _ = edge_sdk.Chatt


def test_importing_the_face_is_quick() -> None:
    """0.3 s are promised. The best of three counts, and three times that is allowed: other work runs here as well."""
    program = (
        "import json, time, numpy\nbegin = time.perf_counter()\nimport edge_sdk\n"
        "print(json.dumps(time.perf_counter() - begin))"
    )
    seconds = min(run(program) for _ in range(3))
    print(f"import edge_sdk, numpy aside: {1e3 * seconds:.1f} ms")
    assert seconds < 0.9


def test_the_exporter_imports_without_torch() -> None:
    modules = modules_of("edge_sdk.export")
    assert {"edge_sdk.export.pipeline", "edge_sdk.export.vocoder_checkpoint", "edge_sdk.export.parity"} <= set(modules)
    loaded = run(
        "import importlib, json\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))",
        json.dumps(modules),
        blocked=("torch", "transformers", "optimum"),
    )
    assert set(modules) <= set(loaded)


def test_a_checkpoint_is_exported_without_torch(tmp_path: Path) -> None:
    tiny.write(tmp_path / "checkpoint")
    graphs = run(
        "import json\nfrom edge_sdk.export.pipeline import export_bundle\nfrom edge_sdk.bundle import Bundle\n"
        "bundle = Bundle.open(export_bundle(sys.argv[1], None, sys.argv[2]))\nbundle.verify()\n"
        "print(json.dumps(list(bundle.manifest.graphs)))",
        tmp_path / "checkpoint",
        tmp_path / "x.bundle",
        blocked=("torch", "transformers", "optimum", "safetensors"),
    )
    assert graphs == ["encoder", "backbone", "speech_input", "speech_head", "speech_head_fused"]


def test_a_conversation_leaves_nothing_behind_and_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would write an id of this device to the user's cache, to report with; nothing of that is there."""
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(
        "import json, edge_sdk\nedge_sdk.doctor()\n"
        "with edge_sdk.Chat(generation=edge_sdk.GenerationConfig(max_new_tokens=3)) as chat: chat.send(text='Hi')\n"
        "print(json.dumps(None))"
    )
    found = {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*") if p.is_file()}
    assert found <= {(".cache", "edge_sdk")}


@pytest.mark.parametrize(
    "asked",
    [
        "from edge_sdk.vad import SpeechDetector; SpeechDetector()",
        "from edge_sdk.runtimes import available; available()",
    ],
)
def test_no_way_to_onnxruntime_asks_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(f"import json\n{asked}\nassert 'onnxruntime' in sys.modules\nprint(json.dumps(None))")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_conversation_needs_no_exporter(tmp_path: Path) -> None:
    """Only what is in the package's dependencies and the runtime; the exporter and its packages are hidden."""
    export_bundle(tiny.write(tmp_path / "checkpoint"), None, tmp_path / "x.bundle")
    ids = run(
        "import json, edge_sdk\n"
        "with edge_sdk.Chat(sys.argv[1], generation=edge_sdk.GenerationConfig(max_new_tokens=3)) as chat:\n"
        "    reply = chat.send(audio=sys.argv[2])\n"
        "    chat.bundle.verify()\n"
        "print(json.dumps(reply.text_ids))",
        tmp_path / "x.bundle",
        goldens.recording("syn0p2"),
        blocked=("torch", "transformers", "onnx", "ml_dtypes", "yaml", "edge_sdk.export", "hypothesis", "pytest"),
    )
    assert len(ids) == 3
