"""Whole bundles of every precision: they speak, verify, are the same bytes each time, and are told from wrong ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_sdk import selftest
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError
from edge_sdk.export.bundle_writer import work_path
from edge_sdk.export.parity import BOUNDS, compare_language
from edge_sdk.export.parity_weights import compare_language_weights
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import MoESpec
from edge_sdk.generation import GenerationConfig
from edge_sdk.manifest import MANIFEST_NAME, FileEntry, manifest_bytes, parse_manifest
from tests import speech_goldens as goldens
from tests import tiny, tolerances
from tests.export.test_pipeline import contents, peak_of_writing

NARROW = ("fp16", "int8", "int4")
STAGES = ["encoder rows", "backbone states", "text scores", "speech scores"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("narrow")
    return {p: export_bundle(goldens.CHECKPOINT, None, folder / p, ExportOptions(p)) for p in NARROW}


@pytest.mark.parametrize("precision", NARROW)
def test_it_passes_its_own_test_and_answers(bundles: dict[str, Path], precision: str) -> None:
    with Bundle.open(bundles[precision]) as bundle:
        report = bundle.verify()
        assert report["same_choices"] == 1.0
        assert report["text_ids_equal"]
        assert report["speech_ids_equal"]
        assert max(v for k, v in report.items() if k.endswith("_error")) < tolerances.SELFTEST_RELATIVE
        settings = GenerationConfig(max_new_tokens=6, do_sample=False)
        with Chat(bundle, generation=settings, context_tokens=256) as chat:
            first = chat.send(audio=goldens.recording("syn1p3"))
            again = chat.send(text="again")
        assert first.speech_ids
        assert again.text_ids


@pytest.mark.parametrize("precision", NARROW)
def test_it_equals_the_same_arithmetic_in_numpy(bundles: dict[str, Path], precision: str) -> None:
    with Bundle.open(bundles[precision]) as bundle:
        stages = compare_language(bundle, goldens.CHECKPOINT)
    assert [(s.against, s.name) for s in stages] == [(a, name) for a in ("same", "fp32") for name in STAGES]
    assert all(s.ok for s in stages), stages
    same, full = stages[:4], stages[4:]
    assert all(s.relative <= BOUNDS[precision].relative for s in same)
    assert all(a.relative < b.relative for a, b in zip(same, full, strict=True)), "less than what rounding costs"
    assert all(s.agreement is not None for s in full[2:])


def test_narrower_costs_more(bundles: dict[str, Path]) -> None:
    costs = []
    for precision in NARROW:
        with Bundle.open(bundles[precision]) as bundle:
            costs.append([s.relative for s in compare_language(bundle, goldens.CHECKPOINT) if s.against == "fp32"][1:])
    assert all(a < b < c for a, b, c in zip(*costs, strict=True)), costs


@pytest.mark.parametrize("precision", NARROW)
def test_the_error_of_every_weight(bundles: dict[str, Path], precision: str) -> None:
    with Bundle.open(bundles[precision]) as bundle:
        lines = compare_language_weights(bundle, goldens.CHECKPOINT)
        assert {line.graph for line in lines} == set(bundle.manifest.graphs)
    assert len(lines) > 30
    assert all(line.ok for line in lines)
    for kind, (least, most) in tolerances.ROUNDING_RELATIVE.items():
        errors = [line.relative for line in lines if line.scheme.startswith(kind)]
        assert bool(errors) == (kind == precision or (precision, kind) == ("int4", "int8"))
        assert all(least < e < most for e in errors), (kind, min(errors), max(errors))
    assert set(lines[0].to_json()) == {"graph", "weight", "scheme", "relative", "ok"}


def test_a_full_precision_bundle_has_no_narrow_weights(speech_bundle: Bundle) -> None:
    assert compare_language_weights(speech_bundle, goldens.CHECKPOINT) == []


@pytest.mark.parametrize("precision", NARROW)
def test_the_same_bytes_each_time(bundles: dict[str, Path], tmp_path: Path, precision: str) -> None:
    again = export_bundle(goldens.CHECKPOINT, None, tmp_path / precision, ExportOptions(precision))
    assert contents(again) == contents(bundles[precision])


def test_blocks_of_32_are_closer(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = export_bundle(goldens.CHECKPOINT, None, tmp_path / "x.bundle", ExportOptions("int4", block=32))
    with Bundle.open(path) as small, Bundle.open(bundles["int4"]) as large:
        errors = [compare_language_weights(b, goldens.CHECKPOINT) for b in (small, large)]
        assert all(s.ok for s in compare_language(small, goldens.CHECKPOINT))
    means = [np.mean([e.relative for e in lines if e.scheme.startswith("int4")]) for lines in errors]
    assert means[0] < means[1]


# -- another checkpoint, a wrong weight


def test_the_same_shapes_with_other_weights(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Fails at every stage, and at every weight."""
    checkpoint = tiny.write(tmp_path / "c")
    for precision in NARROW:
        path = export_bundle(checkpoint, None, tmp_path / precision, ExportOptions(precision))
        other = tiny.write(tmp_path / f"other-{precision}", seed=2)
        with Bundle.open(path) as bundle:
            assert not any(s.ok for s in compare_language(bundle, other))
            assert not any(e.ok for e in compare_language_weights(bundle, other))
            assert all(e.ok for e in compare_language_weights(bundle, checkpoint))


@pytest.mark.parametrize("part", ["quantized", "scales"])
def test_one_wrong_weight_is_named(bundles: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(bundles["int4"], tmp_path / "wrong.bundle"))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    spoil(folder, "backbone", f"{name}.{part}")
    with Bundle.open(folder) as bundle:
        assert [e.name for e in compare_language_weights(bundle, goldens.CHECKPOINT) if not e.ok] == [name]


def spoil(folder: Path, graph: str, name: str) -> None:
    """Turn one bit of some bytes of a weight, its hash put right."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name.startswith(name))
    if tensor.external_data:
        place = {e.key: e.value for e in tensor.external_data}
        file, begin, size = place["location"], int(place["offset"]), int(place["length"])
        data = bytearray((folder / file).read_bytes())
        data[begin : begin + size : 37] = bytes(b ^ 4 for b in data[begin : begin + size : 37])
    else:
        file = f"{graph}.onnx"
        tensor.raw_data = bytes(b ^ 4 for b in tensor.raw_data)
        data = bytearray(model.SerializeToString())
    (folder / file).write_bytes(data)
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    changed = dataclasses.replace(manifest, files={**manifest.files, file: entry})
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(changed))


# -- the self-test on a machine that rounds at another step


def test_other_choices_are_followed_and_counted(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A recorded reply that this machine would not give: its scores are compared along that reply."""
    folder = Path(shutil.copytree(bundles["int8"], tmp_path / "x.bundle"))
    recorded = json.loads((folder / "selftest.json").read_text())
    picks = {kind: [int(i) for i in ids] for kind, ids in recorded["picks"].items()}
    # In the last group, so that it is known how many choices it may change: itself and the three after it.
    picks["speech"][-4] = (picks["speech"][-4] + 1) % 5
    total = len(picks["text"]) + len(picks["speech"])
    with Bundle.open(folder) as bundle:
        found = selftest.record_selftest(bundle, picks)
        assert found["speech_scores"] != recorded["speech_scores"], "what comes after it changes"
        other = {**found, "picks": picks, "text_ids": [1], "speech_ids": [2], "rms": 3.0, "samples": 4}
        rewrite(folder, other)
    with Bundle.open(folder) as bundle:
        report = bundle.verify()
    assert report["speech_scores_error"] < tolerances.SELFTEST_RELATIVE
    assert 1 - 4 / total <= report["same_choices"] <= 1 - 1 / total
    assert not report["speech_ids_equal"]


def test_too_many_other_choices(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles["int8"], tmp_path / "x.bundle"))
    recorded = json.loads((folder / "selftest.json").read_text())
    recorded["picks"]["text"] = [0] * len(recorded["picks"]["text"])
    recorded["picks"]["speech"] = [i % 7 for i in range(len(recorded["picks"]["speech"]))]
    rewrite(folder, recorded)
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="% of the choices are the same"):
        bundle.verify()


def rewrite(folder: Path, recorded: Any) -> None:
    data = json.dumps(recorded).encode()
    (folder / "selftest.json").write_bytes(data)
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    files = {**manifest.files, "selftest.json": FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(dataclasses.replace(manifest, files=files)))


# -- other shapes


def stack(base: Any, **changes: Any) -> Any:
    return dataclasses.replace(base, **changes)


TEXT, HEAD = tiny.SPEC.text, tiny.SPEC.head
SHAPES: dict[str, dict[str, Any]] = {
    "tied, group 3": {"tied": True, "group_size": 3},
    "experts that blocks fill": {"text": stack(TEXT, hidden=64, moe=MoESpec(5, 2, 96))},
    "experts in the head, too small for blocks": {"head": stack(HEAD, moe=MoESpec(4, 1, 6))},
    "add, group 4": {"features_mode": "add", "group_size": 4},
    "bfloat16, text only": {"dtype": "bfloat16", "head": None},
    "wide": {"text": stack(TEXT, hidden=160, intermediate=300), "head": stack(HEAD, hidden=144, intermediate=140)},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_checkpoint_of_another_shape(tmp_path: Path, shape: str, precision: str) -> None:
    checkpoint = tiny.write(tmp_path / "c", seed=7, **SHAPES[shape])
    path = export_bundle(checkpoint, None, tmp_path / "x.bundle", ExportOptions(precision))
    with Bundle.open(path) as bundle:
        assert bundle.verify()["text_ids_equal"]
        assert all(s.ok for s in compare_language(bundle, checkpoint)), shape
        assert all(e.ok for e in compare_language_weights(bundle, checkpoint))
        ops = set(bundle.manifest.graphs["backbone"].ops)
        assert "com.microsoft::MatMulNBits" in ops
        assert ("com.microsoft::QMoE" in ops) == (shape == "experts that blocks fill")
        assert bool(bundle.manifest.recipe["exceptions"]) == ("too small" in shape)


# -- resuming, memory


def test_another_precision_does_not_resume(tmp_path: Path) -> None:
    checkpoint, output = tiny.write(tmp_path / "c"), tmp_path / "x.bundle"

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing speech_head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, None, output, ExportOptions("int4"), progress=stop)
    written = work_path(output) / "bundle" / "backbone.bin"
    first = written.stat().st_ino
    file = tmp_path / "r.json"
    file.write_text('{"rules": [{"match": "*", "scheme": "int4", "block": 32}]}')
    for options in (ExportOptions("int8"), ExportOptions("int4", block=32), ExportOptions("int4", recipe=file)):
        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, None, output, dataclasses.replace(options, resume=True), progress=stop)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, None, output, ExportOptions("int4", resume=True), progress=stop)
    again = written.stat().st_ino
    export_bundle(checkpoint, None, output, ExportOptions("int4", resume=True))
    assert (output / "backbone.bin").stat().st_ino == again
    assert first
    fresh = export_bundle(checkpoint, None, tmp_path / "fresh" / "x.bundle", ExportOptions("int4"))
    assert contents(output) == contents(fresh)


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_one_large_tensor_at_a_time(tmp_path: Path, precision: str) -> None:
    """The text tables, 64 MB each in float32, are the largest there is."""
    text = stack(TEXT, hidden=128)
    checkpoint = tiny.write(tmp_path / "c", text=text, vocab_size=131_072, dtype="bfloat16")
    peak = peak_of_writing(checkpoint, tmp_path / "x.bundle", precision=precision)
    assert peak < (64 << 20) + (36 << 20), "its source, a chunk's temporaries, tokenizer and graphs"
