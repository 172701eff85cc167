"""The vocoder folder's reader: every spelling it accepts, and everything it refuses, by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import CheckpointError
from edge_sdk.export.noise import source_noise_skip
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint, read_vocoder
from edge_sdk.export.vocoder_weights import DIRECTION, GAIN, waveform_weights
from edge_sdk.tensorfile import TensorFile
from tests.vocoder import goldens
from tests.vocoder.folders import Sizes, save, write_folder

Array = np.ndarray[Any, Any]
FULL_SIZE_SKIP = 5052970  # measured upstream at the released sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "vocoder", Sizes(), seed=0)


def tensors(path: Path) -> dict[str, Array]:
    file = TensorFile(path)
    return {name: file.read(name) for name in file}


def change(path: Path, **changes: Array | None) -> None:
    """Rewrite a file with tensors replaced, added, or (None) left out; `__` stands for a dot."""
    found = tensors(path)
    for name, value in changes.items():
        found.pop(name.replace("__", "."), None)
        if value is not None:
            found[name.replace("__", ".")] = value
    save(path, found)


def rename(found: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    return {name.replace(old, new): value for name, value in found.items()}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_vocoder(folder)
    return str(caught.value)


def test_golden_folder(tiny_source: VocoderCheckpoint) -> None:
    expected = goldens.index()
    assert tiny_source.waveform.source_noise_skip == expected["noise"]["source_noise_skip"]
    assert tiny_source.waveform.f0_lookahead_frames == 3
    assert tiny_source.flow.position_kernel == 31
    assert (tiny_source.flow.codebook_size, tiny_source.flow.steps) == (6561, (10, 5, 4))


def test_noise_skip_of_the_released_sizes(tiny_source: VocoderCheckpoint) -> None:
    words = {"f0_first_kernel": 4, "f0_kernel": 3, "post_kernel": 7}
    waveform = dataclasses.replace(tiny_source.waveform, base_channels=512, f0_channels=512)
    shapes = {
        name: tuple(words[d] if isinstance(d, str) else d for d in shape)
        for name, shape in waveform_weights(waveform).items()
    }
    assert source_noise_skip(tiny_source.flow, waveform, shapes) == FULL_SIZE_SKIP


def test_reads_one_tensor_at_a_time() -> None:
    read_vocoder(goldens.TINY)  # imports and caches
    tracemalloc.start()
    read_vocoder(goldens.TINY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    embedding = 6561 * 80 * 4
    assert peak < 2 * embedding  # the whole folder has 4.6 MB, its largest tensor 2.1 MB


@pytest.mark.parametrize("spelling", ["weight_g", "generator", "both"])
def test_other_spellings(folder: Path, spelling: str) -> None:
    expected, name = read_vocoder(folder), f"resblocks.4.convs2.1.{DIRECTION}"
    values = expected.waveform_weights.read(name)  # now: the file is written over
    found = tensors(folder / "hift.safetensors")
    if spelling != "generator":
        found = rename(rename(found, GAIN, "weight_g"), DIRECTION, "weight_v")
    if spelling != "weight_g":
        found = {f"generator.{name}": value for name, value in found.items()}
    save(folder / "hift.safetensors", found)
    other = read_vocoder(folder)
    assert other.waveform == expected.waveform
    assert set(other.waveform_weights.shapes) == set(expected.waveform_weights.shapes)
    np.testing.assert_array_equal(other.waveform_weights.read(name), values)


def test_both_spellings_of_one_tensor_are_refused(folder: Path) -> None:
    extra = tensors(folder / "hift.safetensors")[f"conv_pre.{GAIN}"]
    change(folder / "hift.safetensors", conv_pre__weight_g=extra)
    assert "the same tensor twice" in refusal(folder) and "conv_pre.weight_g" in refusal(folder)


def test_half_precision_is_widened(folder: Path) -> None:
    halved = {n: a.astype(np.float16) for n, a in tensors(folder / "flow.safetensors").items()}
    save(folder / "flow.safetensors", halved)
    source = read_vocoder(folder)
    found = source.flow_weights.read("input_embedding.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halved["input_embedding.weight"].astype(np.float32))


def test_every_problem_in_one_message(folder: Path) -> None:
    bad = np.ones(16, np.float32)
    bad[3] = np.nan
    change(
        folder / "flow.safetensors",
        input_embedding__weight=np.zeros((50, 21), np.float32),
        spk_embed_affine_layer__bias=None,
        pre_lookahead_layer__conv1__bias=bad,
        something__else=np.zeros(3, np.float32),
    )
    change(
        folder / "hift.safetensors",
        conv_pre__bias=np.zeros(16, np.int32),
        m_source__l_linear__bias=np.full(1, np.inf, np.float32),
        conv_post__bias=np.zeros((18, 1), np.float32),
    )
    message = refusal(folder)
    for part in (
        "flow.safetensors: wrong shape: input_embedding.weight is [50, 21], cosyvoice3.yaml asks for [50, 20]",
        "flow.safetensors: missing: spk_embed_affine_layer.bias",
        "flow.safetensors: not finite: pre_lookahead_layer.conv1.bias has 1 NaN or infinite values",
        "flow.safetensors: not part of this model: something.else",
        "hift.safetensors: wrong dtype: conv_pre.bias is I32",
        "hift.safetensors: not finite: m_source.l_linear.bias",
        "hift.safetensors: wrong shape: conv_post.bias is [18, 1]",
    ):
        assert part in message
    assert str(folder) in message


def test_sizes_only_tensors_tell_must_agree(folder: Path) -> None:
    name = "decoder.estimator.input_embed.conv_pos_embed.conv2.0.weight"
    change(folder / "flow.safetensors", **{name.replace(".", "__"): np.zeros((32, 8, 29), np.float32)})
    assert f"wrong shape: {name} is [32, 8, 29], cosyvoice3.yaml asks for [32, 8, 31]" in refusal(folder)


def test_groups_must_divide(folder: Path) -> None:
    found = tensors(folder / "flow.safetensors")
    for conv in ("conv1", "conv2"):
        name = f"decoder.estimator.input_embed.conv_pos_embed.{conv}.0.weight"
        found[name] = np.zeros((32, 5, 31), np.float32)
    save(folder / "flow.safetensors", found)
    assert "groups of 5 channels do not divide dim 32" in refusal(folder)


def test_what_is_not_there(tmp_path: Path, folder: Path) -> None:
    assert "no vocoder folder" in refusal(tmp_path / "nothing")
    (folder / "hift.safetensors").unlink()
    assert "neither hift.safetensors nor hift.pt" in refusal(folder)
    (folder / "cosyvoice3.yaml").unlink()
    assert "cosyvoice3.yaml" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, 5000])
def test_torn_safetensors(folder: Path, keep: int) -> None:
    path = folder / "flow.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "flow.safetensors" in refusal(folder)


def test_header_that_lies(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    (folder / "flow.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "'a'" in refusal(folder)


def test_without_torch_the_message_helps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(folder / "flow.safetensors", folder / "flow.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(folder)
    assert "https://download.pytorch.org/whl/cpu" in message and "flow.safetensors" in message


class TestTorchFiles:
    """The `.pt` path; these make their files with torch, so they need it."""

    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch")

    @pytest.fixture
    def as_pt(self, folder: Path, torch: Any) -> Path:
        for stem in ("flow", "hift"):
            found = tensors(folder / f"{stem}.safetensors")
            torch.save({name: torch.from_numpy(array) for name, array in found.items()}, folder / f"{stem}.pt")
        return folder

    def test_equals_safetensors(self, as_pt: Path) -> None:
        expected = read_vocoder(as_pt)
        arrays = {name: expected.flow_weights.read(name) for name in expected.flow_weights.shapes}
        for stem in ("flow", "hift"):
            (as_pt / f"{stem}.safetensors").unlink()
        found = read_vocoder(as_pt)
        assert (found.flow, found.waveform) == (expected.flow, expected.waveform)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.flow_weights.read(name), array)

    def test_safetensors_come_first(self, as_pt: Path) -> None:
        (as_pt / "flow.pt").write_bytes(b"not looked at")
        read_vocoder(as_pt)

    def test_bfloat16_and_the_old_file_format(self, as_pt: Path, torch: Any) -> None:
        (as_pt / "flow.safetensors").unlink()
        state = torch.load(as_pt / "flow.pt", weights_only=True)
        halved = {name: tensor.bfloat16() for name, tensor in state.items()}
        torch.save(halved, as_pt / "flow.pt", _use_new_zipfile_serialization=False)
        name = "input_embedding.weight"
        found = read_vocoder(as_pt).flow_weights.read(name)
        np.testing.assert_array_equal(found, halved[name].float().numpy())

    @pytest.mark.parametrize("keep", [0, 10, 1000])
    def test_torn(self, as_pt: Path, keep: int) -> None:
        (as_pt / "flow.safetensors").unlink()
        path = as_pt / "flow.pt"
        path.write_bytes(path.read_bytes()[:keep])
        assert "flow.pt" in refusal(as_pt)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_objects_are_never_made(self, as_pt: Path, tmp_path: Path) -> None:
        (as_pt / "flow.safetensors").unlink()
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (marker,)

        (as_pt / "flow.pt").write_bytes(pickle.dumps({"input_embedding.weight": Evil()}))
        assert "holds other objects" in refusal(as_pt)
        assert not marker.exists()

    def test_nested_state(self, as_pt: Path, torch: Any) -> None:
        (as_pt / "flow.safetensors").unlink()
        torch.save({"model": {"weight": torch.zeros(2)}}, as_pt / "flow.pt")
        assert "not a flat state dict: its entry 'model' is a dict" in refusal(as_pt)
