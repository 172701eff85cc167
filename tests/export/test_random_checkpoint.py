"""Random checkpoints: the released names and shapes, the same bytes from the same seed, what spec and seed promise."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ExportError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.language import load_language
from edge_sdk.export.random_checkpoint import (
    PRESETS,
    EncoderSpec,
    LanguageSpec,
    MoESpec,
    SpeechIdSpec,
    StackSpec,
    write_language_checkpoint,
)
from edge_sdk.export.random_checkpoint.__main__ import main
from edge_sdk.export.random_checkpoint.draws import Draws, RandomTensor
from edge_sdk.export.random_checkpoint.language import language_tensors
from edge_sdk.export.random_checkpoint.vocoder import flow_tensors, waveform_tensors
from edge_sdk.export.random_checkpoint.writer import new_folder, write_safetensors
from edge_sdk.tensorfile import TensorFile
from tests.tolerances import DRAWS_MOMENT_ABS, WEIGHT_STD_RELATIVE

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
SMALL = LanguageSpec(
    text=StackSpec(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48, rope_theta=1e6),
    head=StackSpec(hidden=24, layers=1, heads=2, kv_heads=1, head_dim=12, intermediate=40, rope_theta=1e4),
    encoder=EncoderSpec(d_model=24, layers=1, heads=2, ffn=32, n_mels=80, n_window=50),
    speech=SpeechIdSpec.after(100),
    text_tokens=300,
    vocab_size=320,
)
# Other members of the family: ids, sizes and structure all different.
VARIANTS = {
    "small": SMALL,
    "tied, add": replace(SMALL, tied=True, features_mode="add"),
    "ids": replace(SMALL, speech=SpeechIdSpec(real=64, bos=67, eos=65, pad=64), group_size=3),
    "moe": replace(SMALL, text=replace(SMALL.text, moe=MoESpec(experts=5, experts_per_token=2, intermediate=20))),
    "moe, some dense": replace(
        SMALL,
        text=replace(SMALL.text, layers=5, moe=MoESpec(3, 1, 16, normalize=False, sparse_step=2, dense_layers=(3,))),
    ),
    "text only": replace(SMALL, head=None),
}


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))
    return {n: tuple(s) for n, s in shapes.items()}


def language(preset: str) -> LanguageSpec:
    spec = PRESETS[preset].language
    assert spec is not None
    return spec


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = TensorFile(path)
        found |= {name: file.read(name) for name in file}
    return found


# --- names and shapes


@pytest.mark.parametrize(("preset", "name"), [("8b", "fun-audio-chat-8b"), ("tiny", "drsr-tiny")])
def test_language_names_and_shapes_are_the_released_ones(preset: str, name: str) -> None:
    tensors = list(language_tensors(language(preset)))
    assert len({t.name for t in tensors}) == len(tensors)
    assert {t.name: t.shape for t in tensors} == manifest(name)


@pytest.mark.parametrize(("preset", "name"), [("cosyvoice3", "cosyvoice3"), ("tiny", "vocoder-tiny")])
def test_vocoder_names_and_shapes_are_the_released_ones(preset: str, name: str) -> None:
    spec = PRESETS[preset].vocoder
    assert spec is not None
    for part, tensors in (("flow", list(flow_tensors(spec))), ("hift", list(waveform_tensors(spec)))):
        assert len({t.name for t in tensors}) == len(tensors)
        assert {t.name: t.shape for t in tensors} == manifest(f"{name}-{part}")


def test_the_8b_preset_has_the_released_ids() -> None:
    spec = language("8b")
    ids = {
        "<|endoftext|>": 151643,
        "<|im_end|>": 151645,
        "<tool_call>": 151657,
        "</think>": 151668,
        "<|AUDIO|>": 151669,
        "<|audio_bos|>": 151670,
        "<|audio_eos|>": 151671,
        "<|sil|>": 151673,
    }
    assert {content: spec.token_id(content) for content in ids} == ids
    assert (spec.speech.bos, spec.speech.eos, spec.speech.pad, spec.speech.size) == (6561, 6562, 6563, 6565)


def test_mixture_layers_have_the_names_of_qwen3_moe() -> None:
    shapes = {t.name: t.shape for t in language_tensors(VARIANTS["moe, some dense"])}
    layer = "language_model.model.layers"
    assert shapes[f"{layer}.1.mlp.gate.weight"] == (3, 32)
    assert shapes[f"{layer}.1.mlp.experts.2.gate_proj.weight"] == (16, 32)
    assert shapes[f"{layer}.1.mlp.experts.0.down_proj.weight"] == (32, 16)
    dense = [i for i in range(5) if f"{layer}.{i}.mlp.gate_proj.weight" in shapes]
    assert dense == [0, 2, 3, 4]
    assert not any("mlp.gate." in name or "experts" in name for name in shapes if name.startswith(f"{layer}.3."))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_exporter_reads_back_what_the_spec_says(variant: str, tmp_path: Path) -> None:
    spec = VARIANTS[variant]
    write_language_checkpoint(tmp_path / "c", spec, 1)
    model = load_language(Checkpoint(tmp_path / "c")).model  # checks every tensor's name and shape
    assert (model.group_size, model.audio_features_mode) == (spec.group_size, spec.features_mode)
    assert (model.mel.n_mels, model.encoder.n_window, model.encoder.ffn_dim) == (80, 50, 32)
    speech = model.speech_ids
    assert (speech.codebook_size, speech.bos, speech.eos, speech.pad) == (
        spec.speech.size,
        spec.speech.bos,
        spec.speech.eos,
        spec.speech.pad,
    )
    text = model.text_ids
    assert (text.audio, text.audio_bos, text.audio_eos, text.sil, text.eos, text.vocab_size) == (
        307,
        308,
        309,
        311,
        (302,),
        320,
    )
    assert (model.speech_head is None) == (spec.head is None)
    assert model.backbone.rope_theta == spec.text.rope_theta
    moe, wanted = model.backbone.moe, spec.text.moe
    assert (moe is None) == (wanted is None)
    if moe and wanted:
        assert (moe.num_experts, moe.experts_per_token, moe.normalize_weights) == (
            wanted.experts,
            wanted.experts_per_token,
            wanted.normalize,
        )
        assert moe.sparse_layers == tuple(i for i in range(spec.text.layers) if wanted.is_sparse(i))


# --- the numbers


KNOWN_INTEGERS = [-34800, 27465, 40885, -29702]
KNOWN_DRAWS = "628367a6d272d9507f0ff81385ae2b42e12f43515c49f7968a1156d904d8536d"


def test_draws_are_the_same_everywhere() -> None:
    """Known answers: another machine or NumPy that gives other bytes is found here."""
    values = RandomTensor("a.weight", (3, 5), 0.5, offset=0.25, row_spread=0.1).array(1)
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == KNOWN_DRAWS
    assert Draws(7, "x").integers(4).tolist() == KNOWN_INTEGERS


def test_draws_have_mean_0_and_variance_1() -> None:
    values = Draws(1, "moments").normal(1_000_000).astype(np.float64)
    assert abs(values.mean()) < DRAWS_MOMENT_ABS
    assert abs(values.std() - 1) < DRAWS_MOMENT_ABS
    assert np.abs(values).max() < 3.47


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 40),
    block=st.integers(1, 400),
    spread=st.sampled_from([0.0, 0.2]),
    zero_sum=st.booleans(),
)
def test_blocks_do_not_show(rows: int, width: int, block: int, spread: float, zero_sum: bool) -> None:
    tensor = RandomTensor(
        "t", (rows, width), 0.3, offset=np.arange(rows), row_gain=np.arange(rows), row_spread=spread, zero_sum=zero_sum
    )
    whole = tensor.array(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_sdk.export.random_checkpoint.draws._BLOCK_VALUES", block)
        assert np.array_equal(tensor.array(3), whole)
    assert whole.shape == (rows, width)
    assert np.array_equal(whole[0], np.zeros(width))  # gain and offset 0


def test_rows_that_sum_to_zero_do() -> None:
    rows = RandomTensor("t", (50, 30, 4), 1.0, zero_sum=True).array(1)
    assert np.abs(rows.sum(axis=(1, 2))).max() < 120 / 30000  # one part of an integer step for each value
    assert abs(rows.std() - 1) < WEIGHT_STD_RELATIVE


def test_each_tensor_has_numbers_of_its_own() -> None:
    first, again = RandomTensor("a", (100,), 1.0).array(1), RandomTensor("a", (100,), 1.0).array(1)
    assert np.array_equal(first, again)
    for other in (RandomTensor("b", (100,), 1.0).array(1), RandomTensor("a", (100,), 1.0).array(2)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.4


def test_special_rows(tmp_path: Path) -> None:
    spec = replace(language("tiny"), text_eos_gain=3.0, speech_eos_gain=4.0)
    write_language_checkpoint(tmp_path / "c", spec, 1)
    tensors = tensors_of(tmp_path / "c")
    head = np.linalg.norm(tensors["language_model.lm_head.weight"], axis=1)
    assert np.array_equal(head[948:], np.zeros(12))
    assert (head[:948] > 0).all()
    assert head[938] > 2 * np.median(head)
    book = np.linalg.norm(tensors["audio_tower.embed_tokens.weight"], axis=1)
    assert book[6562] > 2 * np.median(book)
    assert book[6563] > 0  # the pad row is a row like any other
    norms = [v for n, v in tensors.items() if n.endswith("norm.weight")]
    assert all(v.std() > 0.05 for v in norms)
    assert all(np.abs(v).max() > 0 for n, v in tensors.items() if n.endswith(".bias"))


def test_readable_text_has_its_other_rows_turned_down(tmp_path: Path) -> None:
    spec = replace(SMALL, readable=True, text_eos_gain=1.5)
    write_language_checkpoint(tmp_path / "c", spec, 1)
    head = np.linalg.norm(tensors_of(tmp_path / "c")["language_model.lm_head.weight"], axis=1)
    vocab = json.loads((tmp_path / "c" / "vocab.json").read_text())
    loud = {token for token, i in vocab.items() if head[i] > 1}
    assert {"Ġthe", "in", ".", "?"} <= loud
    assert not loud & {"Ġ", "a", "A", "Ł", "Ċ", "0", "{"}
    assert head[302] > 1
    assert (head[[300, 301, *range(303, 312)]] < 1).all()


def test_tied_embeddings_keep_their_rows(tmp_path: Path) -> None:
    write_language_checkpoint(tmp_path / "c", replace(SMALL, tied=True, readable=True, text_eos_gain=9.0), 1)
    tensors = tensors_of(tmp_path / "c")
    assert "language_model.lm_head.weight" not in tensors
    rows = np.linalg.norm(tensors["language_model.model.embed_tokens.weight"], axis=1)
    assert np.array_equal(rows[312:], np.zeros(8))
    assert rows[:312].max() < 3 * rows[:312].min()


# --- files


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_language_checkpoint(tmp_path / name, SMALL, seed)
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    one, two = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c")
    assert not [name for name in one if np.array_equal(one[name], two[name])]


def test_the_files_are_those_of_a_released_checkpoint(tmp_path: Path) -> None:
    write_language_checkpoint(tmp_path / "c", SMALL, 1)
    names = (
        "config generation_config preprocessor_config processor_config tokenizer tokenizer_config vocab added_tokens"
    )
    assert set(files_of(tmp_path / "c")) == {
        *(f"{name}.json" for name in names.split()),
        "special_tokens_map.json",
        "merges.txt",
        "chat_template.jinja",
        "model.safetensors",
        *(f"speech_tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config", "special_tokens_map")),
    }
    assert TensorFile(tmp_path / "c" / "model.safetensors").metadata == {"format": "pt"}


def test_a_tensor_does_not_depend_on_the_rest(tmp_path: Path) -> None:
    write_language_checkpoint(tmp_path / "a", SMALL, 1)
    write_language_checkpoint(tmp_path / "b", replace(SMALL, head=None, encoder=EncoderSpec(48, 3, 4, 64)), 1)
    one, two = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    shared = [name for name in one if name.startswith("language_model.")]
    assert len(shared) == 25
    assert all(np.array_equal(one[name], two[name]) for name in shared)


@pytest.mark.parametrize("shards", [2, 3, 7, 42])
def test_shards_hold_the_same_tensors(shards: int, tmp_path: Path) -> None:
    write_language_checkpoint(tmp_path / "one", SMALL, 1)
    write_language_checkpoint(tmp_path / "many", SMALL, 1, shards=shards)
    want, got = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert list(want) == list(got)
    assert all(np.array_equal(want[name], got[name]) for name in want)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in want.values())
    names = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    assert sorted(set(index["weight_map"].values())) == names
    for name, file in index["weight_map"].items():
        assert name in TensorFile(tmp_path / "many" / file).entries
    Checkpoint(tmp_path / "many")


def test_shards_are_of_similar_size(tmp_path: Path) -> None:
    tensors = [RandomTensor(f"t{i:03}", (100,), 1.0) for i in range(60)]
    write_safetensors(tmp_path, "x", tensors, 1, shards=4)
    assert [len(TensorFile(p).entries) for p in sorted(tmp_path.glob("*.safetensors"))] == [15, 15, 15, 15]


@pytest.mark.parametrize(("dtype", "stored", "bits"), [("bfloat16", "BF16", 7), ("float16", "F16", 10)])
def test_half_precision_is_the_float32_checkpoint_rounded(dtype: str, stored: str, bits: int, tmp_path: Path) -> None:
    write_language_checkpoint(tmp_path / "full", SMALL, 1)
    write_language_checkpoint(tmp_path / "half", SMALL, 1, dtype=dtype)
    file = TensorFile(tmp_path / "half" / "model.safetensors")
    assert {e.dtype for e in file.entries.values()} == {stored}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == dtype
    for name, want in tensors_of(tmp_path / "full").items():
        exponent = np.floor(np.log2(np.maximum(np.abs(want.astype(np.float64)), 1e-30)))
        if dtype == "float16":
            exponent = np.maximum(exponent, -14)  # below lie subnormal numbers
        step = 2.0 ** (exponent - bits)
        nearest = np.round(want.astype(np.float64) / step) * step  # to even, as the formats want it
        assert np.array_equal(file.read(name).astype(np.float64), nearest), name


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "c"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="exists and is not an empty folder"):
        write_language_checkpoint(target, SMALL, 1)
    assert files_of(tmp_path) == {"c/mine.txt": b"keep"}
    (target / "mine.txt").unlink()
    write_language_checkpoint(target, SMALL, 1)
    with pytest.raises(ExportError, match="not an empty folder"):
        write_language_checkpoint(target / "config.json", SMALL, 1)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"No space left on device"), new_folder(tmp_path / "new" / "c") as folder:
        (folder / "part.bin").write_bytes(b"x")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(ExportError, match=r"0.1 GB are needed .* 0.0 GB are free"):
        write_language_checkpoint(tmp_path / "c", replace(SMALL, text=replace(SMALL.text, intermediate=99999)), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [0, -1, 10000])
def test_impossible_shards_are_refused(shards: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{shards} shards"):
        write_language_checkpoint(tmp_path / "c", SMALL, 1, shards=shards)


@pytest.mark.parametrize(
    "change",
    [
        lambda: replace(SMALL, vocab_size=311),
        lambda: replace(SMALL, text_tokens=255),
        lambda: replace(SMALL, features_mode="sum"),
        lambda: replace(SMALL, added_tokens=(("<|im_end|>", True),)),
        lambda: SpeechIdSpec(100, 100, 100, 101),
        lambda: SpeechIdSpec(100, 99, 101, 102),
        lambda: SpeechIdSpec(100, 100, 101, 104),
        lambda: replace(SMALL.text, kv_heads=3),
        lambda: replace(SMALL.text, head_dim=7),
        lambda: replace(SMALL.encoder, heads=5),
        lambda: replace(SMALL.encoder, n_window=1501),
    ],
)
def test_impossible_sizes_are_refused(change: Any) -> None:
    with pytest.raises(ExportError):
        change()


# --- command line


def test_the_command_writes_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert (
        main(["--preset", "demo", "--seed", "3", "-o", str(out), "--dtype", "float16", "--shards", "2", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["folders"] == {
        str(out / part): sum(len(data) for data in files_of(out / part).values()) for part in ("language", "vocoder")
    }
    write_language_checkpoint(tmp_path / "again", language("demo"), 3, dtype="float16", shards=2)
    assert files_of(out / "language") == files_of(tmp_path / "again")


def test_a_mistake_is_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "language").write_text("in the way")
    assert main(["--preset", "demo", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        main(["--preset", "none", "-o", str(tmp_path)])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "18.8 GB" in capsys.readouterr().out.replace("\n", " ")
