"""Checkpoint folders: whatever is wrong with their tensors is named, all at once, and reading is exact."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import CheckpointError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.language import load_language
from edge_sdk.export.model_config import LanguageConfig, read_language_config
from edge_sdk.export.random_checkpoint import PRESETS
from edge_sdk.export.random_checkpoint.language_config import language_config
from edge_sdk.export.weights import Weights, language_weights
from tests import speech_goldens as goldens
from tests import tiny

INDEX = "model.safetensors.index.json"
GATE = "language_model.model.layers.0.mlp.gate_proj.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "sharded", shards=3)


def needs(folder: Path) -> tuple[LanguageConfig, Weights]:
    config = read_language_config(Checkpoint(folder))
    return config, language_weights(config.model, config.tied)


def check(folder: Path) -> None:
    _, weights = needs(folder)
    Checkpoint(folder).check(weights)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    return str(caught.value)


# -- which tensors


def test_a_good_checkpoint_passes(whole: Path, sharded: Path) -> None:
    check(whole)
    check(sharded)
    check(goldens.CHECKPOINT)


def test_the_released_models_tensors_are_exactly_what_is_asked_for(tmp_path: Path) -> None:
    """Names and shapes of Fun-Audio-Chat-8B's tensors, from its own index."""
    spec = PRESETS["8b"].language
    assert spec
    tiny.write(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text(json.dumps(language_config(spec, "bfloat16")))
    tiny.edit_json(tmp_path / "c" / "generation_config.json", lambda g: g.update(eos_token_id=151645))
    config, weights = needs(tmp_path / "c")
    with gzip.open(goldens.HERE / "golden" / "manifests" / "fun-audio-chat-8b.json.gz") as file:
        released = {name: tuple(shape) for name, shape in json.load(file).items()}
    assert not config.tied
    assert set(weights.required) <= set(released) <= {*weights.required, *weights.unused}
    assert {**weights.unused, **weights.required} | released == {**weights.unused, **weights.required}


def test_everything_that_is_wrong_is_in_one_error(folder: Path) -> None:
    def edit(t: dict[str, Any]) -> None:
        del t["audio_tower.embed_tokens.weight"], t["continuous_audio_tower.conv1.bias"]
        t["audio_tower.extra.weight"] = tiny.zeros("F32", 2)
        t["visual.patch.weight"] = tiny.zeros("F32", 2)
        t[GATE] = tiny.zeros("F32", 20, 28)
        t["continuous_audio_tower.proj.bias"] = tiny.zeros("F32", 20, 1)
        t["language_model.model.layers.1.mlp.up_proj.weight"] = tiny.zeros("I8", 28, 20)
        t["audio_invert_tower.pre_matching.bias"] = tiny.zeros("I64", 100)
        t[NORM] = tiny.with_value(t[NORM], float("nan"), 19)
        t["language_model.lm_head.weight"] = tiny.with_value(t["language_model.lm_head.weight"], float("-inf"), 0)

    tiny.edit_tensors(folder, edit)
    lines = refused(folder).splitlines()
    assert lines[0] == f"checkpoint '{folder}' does not fit its config.json:"
    assert sorted(line.strip() for line in lines[1:]) == [
        "missing: audio_tower.embed_tokens.weight",
        "missing: continuous_audio_tower.conv1.bias",
        "not finite: language_model.lm_head.weight holds NaN or infinity",
        "not finite: language_model.model.norm.weight holds NaN or infinity",
        "not part of this model: audio_tower.extra.weight",
        "not part of this model: visual.patch.weight",
        "wrong dtype: audio_invert_tower.pre_matching.bias is I64, expected BF16, F16, F32 or F64",
        "wrong dtype: language_model.model.layers.1.mlp.up_proj.weight is I8, expected BF16, F16, F32 or F64",
        "wrong shape: continuous_audio_tower.proj.bias is [20, 1], config.json asks for [20]",
        f"wrong shape: {GATE} is [20, 28], config.json asks for [28, 20]",
    ]


def test_a_long_list_says_how_much_is_left_out(folder: Path) -> None:
    tiny.edit_tensors(folder, lambda t: t.clear() or t.update(x=tiny.zeros("F32", 1)))
    _, weights = needs(folder)
    lines = refused(folder).splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1].strip() == f"... and {len(weights.required) + 1 - 50} more"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_anywhere(tmp_path: Path, dtype: str, value: float) -> None:
    folder = tiny.write(tmp_path / "c", dtype=dtype)
    tiny.edit_tensors(folder, lambda t: t.update({GATE: tiny.with_value(t[GATE], value, 20 * 28 - 1)}))
    assert refused(folder).endswith(f"\n  not finite: {GATE} holds NaN or infinity")


def test_the_largest_finite_values_pass(tmp_path: Path) -> None:
    for dtype, largest in (("float32", np.finfo(np.float32).max), ("float16", 65504), ("bfloat16", 3.38953139e38)):
        folder = tiny.write(tmp_path / dtype, dtype=dtype)
        tiny.edit_tensors(folder, lambda t: t.update({GATE: tiny.with_value(t[GATE], float(largest), 3)}))  # noqa: B023
        check(folder)


def test_a_value_past_the_first_piece_that_is_scanned(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("edge_sdk.export.checkpoint._SCAN_BYTES", 64)
    check(folder)
    tiny.edit_tensors(folder, lambda t: t.update({GATE: tiny.with_value(t[GATE], float("nan"), 500)}))
    assert GATE in refused(folder)


def test_float64_is_read_unless_it_is_too_large(folder: Path) -> None:
    values = np.linspace(-1, 1, 20)
    tiny.edit_tensors(folder, lambda t: t.update({NORM: ("F64", (20,), values.tobytes())}))
    check(folder)
    assert np.array_equal(Checkpoint(folder).read(NORM), values.astype(np.float32))
    values[7] = 1e39
    tiny.edit_tensors(folder, lambda t: t.update({NORM: ("F64", (20,), values.tobytes())}))
    assert f"not finite: {NORM}" in refused(folder)


ALIAS, BOUNDARY = "audio_invert_tower.lm_head.weight", "continuous_audio_tower.audio_bos_eos_token.weight"


def test_tensors_that_are_known_and_not_used(folder: Path) -> None:
    """The head's tied table and the encoder's unread embedding may be there or not, but must fit if they are."""
    assert BOUNDARY in tiny.read_shard(folder / "model.safetensors")
    tiny.edit_tensors(folder, lambda t: (t.pop(BOUNDARY), t.update({ALIAS: t["audio_tower.embed_tokens.weight"]})))
    check(folder)
    before = set(load_language(Checkpoint(folder)).graphs["speech_head"]._weights)
    assert ALIAS not in before
    tiny.edit_tensors(folder, lambda t: t.update({ALIAS: tiny.zeros("F32", 40, 21)}))
    assert f"wrong shape: {ALIAS} is [40, 21], config.json asks for [40, 20]" in refused(folder)
    tiny.edit_tensors(folder, lambda t: t.update({ALIAS: tiny.with_value(tiny.zeros("F32", 40, 20), float("nan"), 0)}))
    assert f"not finite: {ALIAS}" in refused(folder)


def test_a_tied_text_head_may_be_stored_or_not(tmp_path: Path, whole: Path) -> None:
    folder = tiny.write(tmp_path / "tied", tied=True)
    head = "language_model.lm_head.weight"
    assert head not in tiny.read_shard(folder / "model.safetensors")
    check(folder)
    tiny.edit_tensors(folder, lambda t: t.update({head: t["language_model.model.embed_tokens.weight"]}))
    check(folder)
    tiny.edit_tensors(folder, lambda t: t.update({head: tiny.zeros("F32", 3, 3)}))
    assert f"wrong shape: {head}" in refused(folder)
    untied = Path(shutil.copytree(whole, tmp_path / "untied"))
    tiny.edit_tensors(untied, lambda t: t.pop(head))
    assert f"missing: {head}" in refused(untied)


def test_a_text_only_checkpoint_needs_no_speech_head(tmp_path: Path) -> None:
    check(tiny.write(tmp_path / "c", head=None))


# -- reading


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_reading_is_exact(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tiny.write(tmp_path / "c", dtype=dtype, shards=shards)
    numpy_dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    checkpoint, count = Checkpoint(folder), 0
    for path in folder.glob("*.safetensors"):
        for name, (_, shape, data) in tiny.read_shard(path).items():
            found = checkpoint.read(name)
            assert found.dtype == np.float32
            assert np.array_equal(found, np.frombuffer(data, numpy_dtype).astype(np.float32).reshape(shape))
            count += 1
    assert count == len(list(checkpoint))


def test_nothing_but_headers_is_in_memory_until_it_is_read(folder: Path) -> None:
    big = 1 << 22
    tiny.edit_tensors(folder, lambda t: t.update({GATE: tiny.zeros("F32", big)}))
    tracemalloc.start()
    checkpoint = Checkpoint(folder)
    assert checkpoint.entry(GATE).shape == (big,)
    _, before = tracemalloc.get_traced_memory()
    checkpoint.read(GATE)
    _, after = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before < 2_000_000
    assert 4 * big <= after < 4 * big + 2_000_000


def test_checking_holds_a_piece_at_a_time(folder: Path) -> None:
    big = 1 << 23
    tiny.edit_tensors(folder, lambda t: t.update({GATE: tiny.zeros("BF16", big)}))
    checkpoint = Checkpoint(folder)
    tracemalloc.start()
    checkpoint.check(Weights({name: checkpoint.entry(name).shape for name in checkpoint}, {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * big * 0.9, "less than the tensor itself, which is not widened for this"


def test_closing_lets_the_files_go(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.close()
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.read(GATE)


# -- shards


def test_a_shard_that_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shards model-00002-of-00003\.safetensors, which its index"):
        Checkpoint(sharded)
    (sharded / "model-00002-of-00003.safetensors").symlink_to("gone")
    with pytest.raises(CheckpointError, match="lacks the shards"):
        Checkpoint(sharded)


def test_shards_may_be_links_as_download_caches_have_them(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    check(sharded)


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "model.safetensors"])
def test_a_shard_that_is_cut_short(tmp_path: Path, name: str) -> None:
    folder = tiny.write(tmp_path / "c", shards=3 if "of" in name else 1)
    data = (folder / name).read_bytes()
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=f"{name}' (is empty|is cut short|has)"):
            Checkpoint(folder)


def test_a_shard_that_is_something_else(sharded: Path) -> None:
    shard = sharded / "model-00001-of-00003.safetensors"
    for data in (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n",  # a pointer that was never resolved
        b"PK\x03\x04" + bytes(200),
        b"\x80\x02}q\x00." * 30,
        b"<!DOCTYPE html><html>not found</html>",
    ):
        shard.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model-00001-of.*' is cut short or not a safetensors"):
            Checkpoint(sharded)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot open .*Is a directory"):
        Checkpoint(sharded)


def test_a_damaged_shard_is_an_error_or_the_same_names(sharded: Path) -> None:
    shard = sharded / "model-00001-of-00003.safetensors"
    data = shard.read_bytes()
    names, _ = set(Checkpoint(sharded)), None
    header = 8 + int.from_bytes(data[:8], "little")

    @settings(max_examples=80, deadline=None)
    @given(st.integers(0, header - 1), st.integers(1, 255))
    def run(place: int, mask: int) -> None:
        damaged = bytearray(data)
        damaged[place] ^= mask
        shard.write_bytes(damaged)
        try:
            checkpoint = Checkpoint(sharded)
        except CheckpointError:
            return
        assert set(checkpoint) == names

    run()


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, last = (sharded / f"model-0000{n}-of-00003.safetensors" for n in (1, 3))
    name = next(iter(tiny.read_shard(first)))
    tiny.edit_tensors(sharded, lambda t: t.update({name: tiny.zeros("F32", 1)}), last.name)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is in both '.*00001-of.*' and '.*00003-of"):
        Checkpoint(sharded)


def test_an_index_that_lists_what_no_shard_has(sharded: Path) -> None:
    tiny.edit_json(
        sharded / INDEX, lambda v: v["weight_map"].update({"a.b": "model-00001-of-00003.safetensors", "a.a": "x"})
    )
    (sharded / "x").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"lists tensors that their shard does not hold: a\.a, a\.b$"):
        Checkpoint(sharded)


def test_an_index_that_lists_a_tensor_in_another_shard(sharded: Path) -> None:
    def swap(v: Any) -> None:
        v["weight_map"][GATE] = next(s for s in set(v["weight_map"].values()) if s != v["weight_map"][GATE])

    tiny.edit_json(sharded / INDEX, swap)
    with pytest.raises(CheckpointError, match=f"lists tensors that their shard does not hold: {GATE}"):
        Checkpoint(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "./x", "a/"])
def test_an_index_that_leads_outside(sharded: Path, name: str) -> None:
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded.parent / "model.safetensors")
    tiny.edit_json(sharded / INDEX, lambda v: v["weight_map"].update({"w": name}))
    with pytest.raises(CheckpointError, match="names shards outside the folder"):
        Checkpoint(sharded)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 300])
def test_an_index_with_impossible_names(sharded: Path, name: str) -> None:
    tiny.edit_json(sharded / INDEX, lambda v: v["weight_map"].update({"w": name}))
    with pytest.raises(CheckpointError, match=r"outside|lacks the shards|cannot open"):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": {"w": 1}}',
     b'{"weight_map": {"w": ["x"]}}', b"\xff\xfe", b"[" * 100_000],
)  # fmt: skip
def test_an_index_that_is_no_index(sharded: Path, index: bytes) -> None:
    (sharded / INDEX).write_bytes(index)
    with pytest.raises(CheckpointError, match=INDEX.replace(".", r"\.")):
        Checkpoint(sharded)


def test_a_single_file_goes_before_an_index(sharded: Path, whole: Path) -> None:
    """As upstream's loader: an index beside a single file is not looked at."""
    shutil.copy(whole / "model.safetensors", sharded)
    (sharded / "model-00001-of-00003.safetensors").unlink()
    check(sharded)


def test_a_folder_without_tensors(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "gone", "there is no checkpoint folder at"),
        (tmp_path, r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*File name too long"):
        Checkpoint(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="there is no checkpoint folder at"):
        Checkpoint(tmp_path / "file")
