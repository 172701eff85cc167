"""The house rules that a machine can see: who imports whom, what is never called, what never stands in the code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"edge_sdk": "edge_sdk", "runtimes": "edge_sdk.runtimes", "export": "edge_sdk.export"}
COMMANDS = ("edge_sdk.cli", "edge_sdk.commands")


@dataclass(frozen=True)
class Import:
    """One imported module as a file names it. `at_import`: it happens when the file is imported."""

    module: str
    at_import: bool
    line: int


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    def imports(self) -> list[Import]:
        return list(_imports(self.tree, True))

    def inside(self, *packages: str) -> bool:
        return within(self.name, *packages)

    def __str__(self) -> str:
        return self.name


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _imports(node: ast.AST, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_import, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield Import(str(child.module), at_import, child.lineno)
            # `from edge_sdk.export import parity` names a module too
            yield from (Import(f"{child.module}.{a.name}", at_import, child.lineno) for a in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(ast.Module(child.orelse, []), at_import)
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, at_import and not lazy)


def load(path: Path, name: str) -> Module:
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


def product() -> list[Module]:
    found = []
    for room, package in ROOMS.items():
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            found.append(load(path, ".".join((package, *(p for p in parts if p != "__init__")))))
    return found


MODULES = product()
NAMES = {m.name for m in MODULES}
OTHERS = [
    load(p, p.relative_to(ROOT).as_posix()) for d in ("tests", "samples") for p in sorted((ROOT / d).rglob("*.py"))
]


def room_of(name: str) -> str:
    return "export" if within(name, "edge_sdk.export") else "runtimes" if within(name, "edge_sdk.runtimes") else "sdk"


def room(name: str) -> list[Module]:
    return [m for m in MODULES if room_of(m.name) == name]


def offences(modules: list[Module], wrong: object) -> list[str]:
    assert callable(wrong)
    return [f"{m.name}:{i.line} imports {i.module}" for m in modules for i in m.imports() if wrong(m, i)]


def test_every_room_was_found() -> None:
    assert {"edge_sdk.chat", "edge_sdk.runtimes.ort", "edge_sdk.export.graphs.builder"} <= NAMES
    assert len(room("sdk")) > 30
    assert len(room("export")) > 20


# -- who may import whom


def test_the_device_never_needs_the_exporter() -> None:
    """Commands may ask for it, when they run."""
    assert not offences(
        room("sdk"),
        lambda m, i: within(i.module, "edge_sdk.export") and (i.at_import or not m.inside("edge_sdk.commands")),
    )


def test_onnxruntime_is_imported_in_one_place() -> None:
    """Where its telemetry is switched off before; tests have that from conftest.py, the benches from the SDK."""
    assert not offences(MODULES, lambda m, i: within(i.module, "onnxruntime") and m.name != "edge_sdk.runtimes.ort")
    benches = [m for m in OTHERS if m.name.startswith(("tests/bench", "samples"))]
    assert len(benches) > 10
    assert not offences(benches, lambda m, i: within(i.module, "onnxruntime"))
    (ort,) = (m for m in MODULES if m.name == "edge_sdk.runtimes.ort")
    functions = [n for n in ast.walk(ort.tree) if isinstance(n, ast.FunctionDef)]
    importing = [f for f in functions if any(within(i.module, "onnxruntime") for i in _imports(f, True))]
    assert [f.name for f in importing] == ["library"]
    assert len([i for i in ort.imports() if within(i.module, "onnxruntime")]) == 1
    assert ast.unparse(importing[0].body[1]) == "no_telemetry()"  # behind the docstring


def test_runtimes_are_opened_by_name_from_one_place() -> None:
    """The one arrow up: a bundle opens them, the diagnosis lists them, build-engine asks for their vendor's library,
    voice activity detection runs its own network there; all when they are asked to."""
    askers = ("edge_sdk.bundle", "edge_sdk.diagnosis", "edge_sdk.commands.build_engine", "edge_sdk.vad")
    assert not offences(
        room("sdk") + room("export"),
        lambda m, i: within(i.module, "edge_sdk.runtimes") and (i.at_import or m.name not in askers),
    )


BELOW_RUNTIMES = tuple(f"edge_sdk.{name}" for name in ("runtime", "tensors", "bundle", "engines", "errors", "native"))


def test_a_runtime_knows_the_interface_and_no_sister() -> None:
    """`trt_engine.py` and `trt_runtime.py` are of one family; the CUDA driver belongs to no vendor's runtime."""

    def wrong(m: Module, i: Import) -> bool:
        package, _, leaf = i.module.partition("edge_sdk.runtimes.")
        family = m.name.rpartition(".")[2].partition("_")[0]
        if leaf and not package:
            return leaf.partition("_")[0].partition(".")[0] not in (family, "cuda")
        known = (*BELOW_RUNTIMES, "edge_sdk.runtimes")  # the package alone: `from edge_sdk.runtimes import cuda`
        return within(i.module, "edge_sdk") and i.module != "edge_sdk" and not within(i.module, *known)

    assert not offences(room("runtimes"), wrong)


CONVERSATION = (
    "chat", "cli", "commands", "reply", "running", "stream", "floor", "transcript", "channel", "turn", "session",
    "speaker", "events", "tools", "tool_worker", "conversation", "assistant", "assistant_events", "thinker", "dialogue",
    "exchange", "barge_in", "endpointing", "vad", "server",
)  # fmt: skip


def test_the_exporter_knows_nothing_of_conversations() -> None:
    """It shares the bundle's format; its parity check drives the engines, below the chat."""
    assert not offences(room("export"), lambda m, i: within(i.module, *(f"edge_sdk.{name}" for name in CONVERSATION)))


DRIVERS = ("backbone", "speech_head", "context", "generation", "clip", "encoder", "selftest", "flow", "waveform")


def test_only_parity_drives_engines() -> None:
    def wrong(m: Module, i: Import) -> bool:
        checks = m.name.startswith("edge_sdk.export.parity") or not i.at_import
        return within(i.module, *(f"edge_sdk.{name}" for name in DRIVERS)) and not checks

    assert not offences(room("export"), wrong)


def test_graphs_and_references_know_no_files() -> None:
    """What is computed stands apart from where weights come from and where bundles go."""
    files = tuple(f"edge_sdk.export.{n}" for n in ("checkpoint", "bundle_writer", "pipeline", "vocoder_checkpoint"))
    computing = [m for m in room("export") if m.inside("edge_sdk.export.graphs", "edge_sdk.export.reference")]
    assert len(computing) > 6
    assert not offences(computing, lambda m, i: within(i.module, *files))
    references = [m for m in computing if m.inside("edge_sdk.export.reference")]
    assert not offences(references, lambda m, i: within(i.module, "edge_sdk.export.graphs", "edge_sdk.export.fold"))


def test_commands_are_the_top() -> None:
    assert not offences(MODULES, lambda m, i: within(i.module, *COMMANDS) and not m.inside(*COMMANDS))


def third_party(name: str) -> bool:
    root = name.partition(".")[0]
    return root not in sys.stdlib_module_names and root != "edge_sdk"


@pytest.mark.parametrize("where", ["sdk", "runtimes"])
def test_importing_the_device_needs_numpy_alone(where: str) -> None:
    assert not offences(
        room(where), lambda m, i: i.at_import and third_party(i.module) and not within(i.module, "numpy")
    )


def test_vendor_libraries_stay_in_their_own_file() -> None:
    vendors = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "cupy")
    assert not offences([m for m in MODULES if room_of(m.name) != "runtimes"], lambda m, i: within(i.module, *vendors))
    assert not offences(room("runtimes"), lambda m, i: within(i.module, "onnxruntime") and ".ort" not in m.name)


def test_the_exporters_packages() -> None:
    """torch only where a .pt file is opened; nothing of Hugging Face's beside the tokenizer library."""
    allowed = ("numpy", "onnx", "tokenizers", "yaml")
    lazily = ("torch",)
    assert not offences(
        room("export"),
        lambda m, i: third_party(i.module) and not within(i.module, *allowed, *(() if i.at_import else lazily)),
    )


def test_no_module_needs_itself() -> None:
    """Imports at import time run down: no circle among them, in any room."""
    below = {
        m.name: {i.module for i in m.imports() if i.at_import and i.module in NAMES and i.module != m.name}
        for m in MODULES
    }
    # Importing a module imports its packages first; the face, which all of ours share, imports nothing but errors.
    assert below["edge_sdk"] == {"edge_sdk.errors"}
    done: set[str] = {"edge_sdk"}
    while True:
        free = {name for name, needs in below.items() if name not in done and needs <= done}
        if not free:
            break
        done |= free
    assert not set(below) - done, f"these import each other: {sorted(set(below) - done)}"


def test_nothing_is_loaded_a_second_time() -> None:
    """From the repository's root `import export` works, and loads a second copy of everything."""
    assert not offences(MODULES + OTHERS, lambda m, i: within(i.module, "export", "runtimes"))


def test_samples_use_what_users_have() -> None:
    samples = [m for m in OTHERS if m.name.startswith("samples/")]
    assert samples
    # They run the export; the training recipe writes what it reads.
    makers = ("samples/random_bundle.py", "samples/demo.py", "samples/nano/")
    assert not offences(
        samples,
        lambda m, i: within(i.module, "edge_sdk.export") and not m.name.startswith(makers),
    )
    for m in samples:
        private = [
            ast.unparse(n)
            for n in ast.walk(m.tree)
            if isinstance(n, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", n.attr) and ast.unparse(n.value) != "self"
        ]
        assert not private, f"{m.name} uses {private}"


# -- what is never called


def calls(m: Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(m.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_only_commands_print() -> None:
    for m in MODULES:
        if not m.inside(*COMMANDS):
            assert not [c.lineno for name, c in calls(m) if name == "print"], m.name


def test_nothing_is_executed_or_unpickled() -> None:
    forbidden = {
        "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.loads", "marshal.load",
        "shelve.open", "os.system", "os.popen", "subprocess.run", "subprocess.Popen", "yaml.unsafe_load",
        "yaml.full_load", "sys.exit", "os._exit", "exit", "quit",
    }  # fmt: skip
    for m in MODULES:
        found = [f"{name}:{c.lineno}" for name, c in calls(m) if name in forbidden]
        if m.name in ("edge_sdk.cli", "edge_sdk.export.random_checkpoint.__main__"):
            found = [f for f in found if not f.startswith("sys.exit")]
        assert not found, f"{m.name}: {found}"


def test_arrays_and_tensors_are_loaded_as_data() -> None:
    for m in MODULES:
        for name, call in calls(m):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", f"{m.name}:{call.lineno}"
            if name == "torch.load":
                assert given.get("weights_only") == "True", f"{m.name}:{call.lineno}"
            if name == "yaml.load":
                classes = [c for c in ast.walk(m.tree) if isinstance(c, ast.ClassDef)]
                safe = {c.name for c in classes if [ast.unparse(base) for base in c.bases] == ["yaml.SafeLoader"]}
                assert given.get("Loader") in {"yaml.SafeLoader", *safe}, f"{m.name}:{call.lineno}"


def test_templates_are_rendered_in_a_sandbox() -> None:
    assert not offences(
        MODULES,
        lambda m, i: within(
            i.module, "jinja2.Environment", "jinja2.Template", "jinja2.environment", "jinja2.nativetypes"
        ),
    )


def test_a_callers_mistake_is_no_assertion() -> None:
    """`python -O` takes them out."""
    for m in MODULES:
        assert not [n.lineno for n in ast.walk(m.tree) if isinstance(n, ast.Assert)], m.name


# -- what never stands in the code


def test_every_module_says_what_it_is() -> None:
    for m in MODULES:
        assert ast.get_docstring(m.tree), m.name


MACHINE = re.compile(r"(^|[\s'\"=:(])(/(home|root|Users|work|mnt|media|opt|tmp|var|srv)/|[A-Z]:\\)")


def test_no_path_of_a_machine() -> None:
    for m in MODULES + [m for m in OTHERS if m.name.startswith("samples/")]:
        found = [
            f"{m.name}:{n.lineno} {n.value!r}"
            for n in ast.walk(m.tree)
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and MACHINE.search(n.value)
        ]
        assert not found


def test_tests_hold_no_bounds_of_their_own() -> None:
    """What numbers may differ by stands in tests/tolerances.py, with its reason."""
    for m in OTHERS:
        if not m.name.startswith("tests/") or m.name.startswith("tests/bench/"):
            continue
        for _, call in calls(m):
            for keyword in call.keywords:
                if keyword.arg in ("rtol", "atol", "rel", "abs"):
                    literal = isinstance(keyword.value, ast.Constant) and keyword.value.value != 0
                    assert not literal, f"{m.name}:{call.lineno} {ast.unparse(keyword)}"
