"""`verify --against` for the vocoder: passes for its own folder, fails for any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, ExportError
from edge_sdk.export.parity_vocoder import compare_vocoder
from edge_sdk.export.parity_weights import compare_vocoder_weights
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.tensorfile import TensorFile
from tests.vocoder import goldens
from tests.vocoder.folders import Sizes, save, write_folder


def test_own_folder(tiny_bundle: Bundle) -> None:
    stages = compare_vocoder(tiny_bundle, goldens.TINY)
    assert [s.name for s in stages] == [
        "flow: mu",
        "flow: velocity",
        "flow: mel, whole",
        "flow: mel, streaming",
        "waveform: f0 [Hz]",
        "waveform: samples",
    ]
    assert all(s.ok for s in stages)


@pytest.mark.parametrize(
    ("stem", "tensor", "failing"),
    [
        ("flow", "pre_lookahead_layer.conv2.bias", "flow: mu"),
        ("flow", "decoder.estimator.transformer_blocks.1.attn.to_v.bias", "flow: velocity"),
        ("hift", "f0_predictor.classifier.bias", "waveform: f0 [Hz]"),
        ("hift", "conv_post.bias", "waveform: samples"),
    ],
)
def test_one_changed_tensor_is_found(tiny_bundle: Bundle, tmp_path: Path, stem: str, tensor: str, failing: str) -> None:
    for path in goldens.TINY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = TensorFile(goldens.TINY / f"{stem}.safetensors")
    tensors = {name: file.read(name) for name in file}
    tensors[tensor] = tensors[tensor] + np.float32(0.05)
    save(tmp_path / f"{stem}.safetensors", tensors)
    failed = [s.name for s in compare_vocoder(tiny_bundle, tmp_path) if not s.ok]
    assert failing in failed


def narrow(folder: Path, output: Path, recipe: Path | None = None, precision: str = "int8") -> Path:
    options = ExportOptions(precision, recipe=recipe, noise_frames=400)
    return export_bundle(None, folder, output, options)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_narrow_flow(tmp_path: Path, precision: str) -> None:
    """Equal to the same arithmetic in NumPy; what it costs is told; waveform part and states stay as they are."""
    with Bundle.open(narrow(goldens.TINY, tmp_path / "x.bundle", precision=precision)) as bundle:
        assert bundle.verify()
        stages = compare_vocoder(bundle, goldens.TINY)
        lines = compare_vocoder_weights(bundle, goldens.TINY)
    assert [s.against for s in stages] == ["same"] * 4 + ["fp32"] * 6
    assert all(s.ok for s in stages)
    assert all(a.relative <= b.relative for a, b in zip(stages[:4], stages[4:8], strict=True))
    assert lines
    assert all(line.ok for line in lines)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(), Sizes(head_dim=12, heads=3, dim=40, depth=2), Sizes(cfg_rate=0, depth=2)],
    ids=["small", "heads of 12", "no guidance"],
)
def test_a_recipe_for_all_of_the_flow(tmp_path: Path, sizes: Sizes) -> None:
    """Tables and projections at its ends too, in heads that are padded for the cache."""
    folder = write_folder(tmp_path / "folder", sizes, seed=3)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rules: [{match: '*', scheme: int8, block: 32}]")
    with Bundle.open(narrow(folder, tmp_path / "x.bundle", recipe)) as bundle:
        assert bundle.manifest.graphs["flow_tokens"].precision == "int8"
        assert all(s.ok for s in compare_vocoder(bundle, folder))
        assert len(compare_vocoder_weights(bundle, folder)) == 5 + 4 * sizes.depth


def test_a_narrow_flow_of_another_folder(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, Sizes(), seed) for name, seed in (("a", 1), ("b", 2))]
    with Bundle.open(narrow(folders[0], tmp_path / "x.bundle")) as bundle:
        stages = compare_vocoder(bundle, folders[1])
        lines = compare_vocoder_weights(bundle, folders[1])
    assert not any(s.ok for s in stages if s.name.startswith("flow: "))
    assert not any(line.ok for line in lines)


def test_narrow_convolutions(tmp_path: Path) -> None:
    """Of sizes that fill no block; another folder's differ in every stage of the waveform part."""
    folders = [write_folder(tmp_path / name, Sizes(), seed) for name, seed in (("a", 1), ("b", 2))]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rules: [{match: '*', scheme: int8, block: 32, of: convolutions}]")
    with Bundle.open(narrow(folders[0], tmp_path / "x.bundle", recipe)) as bundle:
        own, other = (compare_vocoder(bundle, folder)[-4:] for folder in folders)
        lines = [compare_vocoder_weights(bundle, folder) for folder in folders]
    assert [(s.name, s.against) for s in own] == [
        (name, against) for against in ("same", "fp32") for name in ("waveform: f0 [Hz]", "waveform: samples")
    ]
    assert all(s.ok for s in own)
    assert not any(s.ok for s in other if s.against == "same")
    assert all(line.ok for line in lines[0])
    assert not any(line.ok for line in lines[1])


def test_other_sizes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", Sizes(), seed=0)
    with pytest.raises(ExportError, match="was not made from"):
        compare_vocoder(tiny_bundle, other)


def test_no_vocoder(speech_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no vocoder to compare"):
        compare_vocoder(speech_bundle, goldens.TINY)
