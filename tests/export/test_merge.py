"""Merging checkpoints: the numbers are NumPy's, the layout is A's, every difference is named, nothing half is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import CheckpointError, Error, ExportError
from edge_sdk.export import merge as merging
from edge_sdk.export.merge import merge_checkpoints, mix
from edge_sdk.export.pipeline import export_bundle
from tests import tiny

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GATE = "language_model.model.layers.0.mlp.gate_proj.weight"
NORM = "language_model.model.norm.weight"
TEXT_HEAD, TEXT_EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
SPEECH_HEAD, CODEBOOK = "audio_invert_tower.lm_head.weight", "audio_tower.embed_tokens.weight"
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F64": np.dtype("<f8")}
Folders = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path) -> Folders:
    return tiny.write(tmp_path / "a", 1), tiny.write(tmp_path / "b", 2)


def tensors(folder: Path) -> dict[str, tiny.Stored]:
    found: dict[str, tiny.Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= tiny.read_shard(path)
    return found


def values(stored: tiny.Stored) -> Any:
    dtype, shape, data = stored
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def stored(array: Any) -> tiny.Stored:
    name = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    return name, array.shape, array.tobytes()


def plain(a: Any, b: Any, alpha: float) -> Any:
    """The definition: float32, and the dtype of a. ml_dtypes rounds to nearest even."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    mean = np.float32(alpha) * x + np.float32(1 - alpha) * y
    return np.where(x == y, x, mean).astype(a.dtype)


def refused(a: Path, b: Path, kind: type[Error] = CheckpointError, **how: Any) -> str:
    """What is said; and nothing was made."""
    output = a.parent / "out"
    with pytest.raises(kind) as caught:
        merge_checkpoints(a, b, output, **how)
    assert not output.exists()
    return str(caught.value)


# -- the numbers


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")])
@pytest.mark.parametrize("shards", [(1, 1), (3, 1), (1, 3), (2, 5)])
def test_every_tensor_is_the_mean(
    tmp_path: Path, alpha: float, dtypes: tuple[str, str], shards: tuple[int, int]
) -> None:
    a, b = (
        tiny.write(tmp_path / n, s, dtype=d, shards=k) for n, s, d, k in zip("ab", (1, 2), dtypes, shards, strict=1)
    )
    done = merge_checkpoints(a, b, tmp_path / "c", alpha)
    first, second, merged = tensors(a), tensors(b), tensors(tmp_path / "c")
    assert list(merged) == list(first)
    assert done.tensors == len(first)
    for name, found in merged.items():
        expected = stored(plain(values(first[name]), values(second[name]), alpha))
        assert found == expected, name
    other = {} if dtypes[0] == dtypes[1] else {"BF16 -> F16": len(first)}
    assert done.other_dtypes == other


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    more=st.lists(st.integers(0, 2**32 - 1), min_size=40, max_size=40),
    alpha=st.floats(0, 1),
)
def test_any_numbers(bits: list[int], more: list[int], alpha: float) -> None:
    """Denormals, signed zeros and the largest included: equal to NumPy's, and between the two."""
    a = np.array(bits, np.uint32).view(np.float32)
    b = np.array(more[: len(bits)], np.uint32).view(np.float32)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    found = mix(a, b, alpha)
    assert np.isfinite(found).all()
    if 0 < alpha < 1:
        assert found.tobytes() == plain(a, b, alpha).tobytes()
    assert mix(a, a.copy(), alpha).tobytes() == a.tobytes()
    assert mix(a, b, 1.0).tobytes() == a.tobytes()
    assert mix(a, b, 0.0).tobytes() == b.tobytes()


def test_rounding_is_to_nearest_and_ties_to_even(pair: Folders, tmp_path: Path) -> None:
    """The mean of two neighbours of bfloat16 lies in the middle: it becomes the one whose last bit is 0."""
    for folder, dtype in zip(pair, ("bfloat16", "bfloat16"), strict=True):
        shutil.rmtree(folder)
        tiny.write(folder, dtype=dtype)
    even = np.arange(0x3F80, 0x3F80 + 20, dtype="<u2")  # 20 = the size of the norm
    tiny.edit_tensors(pair[0], lambda t: t.update({NORM: ("BF16", (20,), even.tobytes())}))
    tiny.edit_tensors(pair[1], lambda t: t.update({NORM: ("BF16", (20,), (even + 1).tobytes())}))
    merge_checkpoints(*pair, tmp_path / "c")
    found = np.frombuffer(tensors(tmp_path / "c")[NORM][2], "<u2")
    assert found.tolist() == (even + (even & 1)).tolist()


def test_float64_is_computed_as_such(pair: Folders, tmp_path: Path) -> None:
    for n, folder in enumerate(pair):
        array = np.linspace(1 + n, 2 + n, 20) / 3
        tiny.edit_tensors(folder, lambda t, array=array: t.update({NORM: stored(array)}))  # type: ignore[misc]
    merge_checkpoints(*pair, tmp_path / "c", 0.25)
    first, second = values(tensors(pair[0])[NORM]), values(tensors(pair[1])[NORM])
    assert values(tensors(tmp_path / "c")[NORM]).tolist() == (0.25 * first + 0.75 * second).tolist()


def test_a_tensor_larger_than_a_piece(pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_checkpoints(*pair, tmp_path / "whole", 0.3)
    monkeypatch.setattr(merging, "PIECE_VALUES", 7)
    merge_checkpoints(*pair, tmp_path / "pieces", 0.3)
    assert (tmp_path / "pieces" / SINGLE).read_bytes() == (tmp_path / "whole" / SINGLE).read_bytes()


# -- what is kept


@pytest.mark.parametrize("shards", [1, 3])
def test_with_alpha_1_every_file_is_as(tmp_path: Path, shards: int) -> None:
    a, b = tiny.write(tmp_path / "a", 1, shards=shards), tiny.write(tmp_path / "b", 2, dtype="float16")
    (a / "LICENSE").write_text("as it was")
    (a / "optimizer.bin").write_bytes(b"not for others")
    merge_checkpoints(a, b, tmp_path / "c", 1.0)
    names = {p.relative_to(a).as_posix() for p in a.rglob("*") if p.is_file()} - {"optimizer.bin"}
    made = {p.relative_to(tmp_path / "c").as_posix() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    assert made == names | {"merge.json"}
    assert "speech_tokenizer/tokenizer_config.json" in names
    for name in names:
        assert (tmp_path / "c" / name).read_bytes() == (a / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_was_merged_is_written_down(pair: Folders, tmp_path: Path) -> None:
    import hashlib

    merge_checkpoints(*pair, tmp_path / "c", 0.25)
    record = json.loads((tmp_path / "c" / "merge.json").read_text())
    assert record["alpha"] == 0.25
    for key, folder in zip("ab", pair, strict=True):
        assert record[key]["name"] == folder.name
        for name in ("config.json", "tokenizer.json", SINGLE):
            assert record[key]["files"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(record)


def test_a_merged_checkpoint_is_exported(pair: Folders, tmp_path: Path) -> None:
    merge_checkpoints(*pair, tmp_path / "c")
    assert export_bundle(tmp_path / "c", None, tmp_path / "c.bundle").exists()


def test_what_does_not_change_the_computation_may_differ(pair: Folders, tmp_path: Path) -> None:
    tiny.edit_json(pair[1] / "config.json", lambda c: c.update(transformers_version="5.0", torch_dtype="bfloat16"))
    tiny.edit_json(pair[1] / "tokenizer.json", lambda t: t.update(padding={"direction": "Left"}))
    (pair[1] / "preprocessor_config.json").unlink()
    merge_checkpoints(*pair, tmp_path / "c")


def test_links_to_files_are_followed(pair: Folders, tmp_path: Path) -> None:
    """As a download cache lays a checkpoint out; the result has files of its own."""
    (tmp_path / "blob").write_bytes((pair[0] / SINGLE).read_bytes())
    (pair[0] / SINGLE).unlink()
    (pair[0] / SINGLE).symlink_to("../blob")
    merge_checkpoints(*pair, tmp_path / "c")
    assert not any(p.is_symlink() for p in (tmp_path / "c").rglob("*"))


# -- tied tensors


def with_alias(folder: Path, alias: str, name: str) -> Path:
    tiny.edit_tensors(folder, lambda t: t.update({alias: t[name]}))
    return folder


@pytest.mark.parametrize("both", ["a", "b", "ab"])
def test_a_tied_tensor_may_be_stored_once_or_twice(tmp_path: Path, both: str) -> None:
    folders = [tiny.write(tmp_path / n, s, tied=True) for n, s in (("a", 1), ("b", 2))]
    for folder in folders:
        if folder.name in both:
            with_alias(with_alias(folder, SPEECH_HEAD, CODEBOOK), TEXT_HEAD, TEXT_EMBEDDING)
    merge_checkpoints(*folders, tmp_path / "c", 0.3)
    merged = tensors(tmp_path / "c")
    assert (TEXT_HEAD in merged) == ("a" in both)
    if "a" in both:
        assert merged[TEXT_HEAD] == merged[TEXT_EMBEDDING]
        assert merged[SPEECH_HEAD] == merged[CODEBOOK]


def test_a_tie_that_is_none(tmp_path: Path, pair: Folders) -> None:
    with_alias(pair[1], SPEECH_HEAD, CODEBOOK)
    tiny.edit_tensors(pair[1], lambda t: t.update({SPEECH_HEAD: tiny.with_value(t[SPEECH_HEAD], 3.0, 5)}))
    assert f"tied, but not equal in '{pair[1]}': {SPEECH_HEAD} and {CODEBOOK}" in refused(*pair)


def test_a_text_head_of_its_own_is_no_second_name(pair: Folders) -> None:
    tiny.edit_tensors(pair[0], lambda t: t.pop(TEXT_HEAD))
    assert f"only in the second: {TEXT_HEAD}" in refused(*pair)


# -- what does not fit


def test_every_difference_is_named_at_once(pair: Folders) -> None:
    a, b = pair
    tiny.edit_json(b / "config.json", lambda c: c["text_config"].update(rope_theta=1.0, added="x" * 99))
    tiny.edit_json(b / "config.json", lambda c: c.update(hidden_size=24))
    tiny.edit_json(b / "preprocessor_config.json", lambda c: c.update(hop_length=100))
    tiny.edit_json(b / "tokenizer.json", lambda t: t["added_tokens"][0].update(content="<|other|>"))
    tiny.edit_tensors(a, lambda t: t.update(whole=tiny.zeros("I64", 3), mixed=tiny.zeros("I64", 3)))
    tiny.edit_tensors(
        b,
        lambda t: (
            t.update(
                {
                    "whole": ("I64", (3,), b"\1" * 24),
                    "mixed": tiny.zeros("F32", 3),
                    "extra": tiny.zeros("F32", 1),
                    NORM: tiny.zeros("F32", 21),
                }
            )
            or t.pop(GATE)
        ),
    )
    said = refused(a, b)
    for line in (
        "config.json: hidden_size is 20 in the first, 24 in the second",
        "config.json: text_config.rope_theta is 10000.0 in the first, 1.0 in the second",
        f"config.json: text_config.added is absent in the first, '{'x' * 56}... in the second",
        "preprocessor_config.json: hop_length is 160 in the first, 100 in the second",
        "tokenizer.json: ids mean other tokens in the second",
        f"only in the first: {GATE}",
        "only in the second: extra",
        f"wrong shape: {NORM} is [20] in the first, [21] in the second",
        "wrong dtype: mixed is I64 in the first, F32 in the second",
        "not equal: whole is I64, and there is no mean of whole numbers",
    ):
        assert f"\n  {line}" in said


@pytest.mark.parametrize("levels", [900, 100_000])
def test_a_configuration_without_end(pair: Folders, levels: int) -> None:
    """At the edge of what can be read, and past it: an error of ours either way."""
    for n, folder in enumerate(pair):
        text = (folder / "config.json").read_text().rstrip().removesuffix("}")
        (folder / "config.json").write_text(text + ', "deep": ' + '{"x": ' * levels + str(n) + "}" * levels + "}")
    assert any(said in refused(*pair) for said in ("x is 0 in the first, 1", "nested too deeply", "cannot read"))


def test_a_long_list_is_cut(tmp_path: Path, pair: Folders) -> None:
    tiny.edit_tensors(pair[1], lambda t: t.update({f"x{n}": tiny.zeros("F32", 1) for n in range(99)}))
    said = refused(*pair)
    assert said.endswith("... and 49 more")
    assert len(said.splitlines()) == 52


def test_whole_numbers_that_are_equal_are_kept(pair: Folders, tmp_path: Path) -> None:
    table = ("I32", (3,), np.arange(3, dtype="<i4").tobytes())
    for folder in pair:
        tiny.edit_tensors(folder, lambda t: t.update(table=table, flags=("BOOL", (2,), b"\1\0")))
    merge_checkpoints(*pair, tmp_path / "c")
    assert tensors(tmp_path / "c")["table"] == table


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_none(tmp_path: Path, value: float, dtype: str, which: int) -> None:
    pair = tiny.write(tmp_path / "a", 1, dtype=dtype), tiny.write(tmp_path / "b", 2, dtype=dtype)
    tiny.edit_tensors(pair[which], lambda t: t.update({GATE: tiny.with_value(t[GATE], value, 3)}))
    for alpha in (0.5, float(which)):  # at the second, that side is not in the result
        said = refused(*pair, alpha=alpha)
        assert said == f"tensor '{GATE}' holds NaN or infinity in '{pair[which] / SINGLE}'"


@pytest.mark.parametrize(("dtype", "name", "value"), [("float16", "F16", 1e6), ("bfloat16", "BF16", 3.4028e38)])
def test_numbers_that_as_dtype_cannot_hold(tmp_path: Path, dtype: str, name: str, value: float) -> None:
    a, b = tiny.write(tmp_path / "a", 1, dtype=dtype), tiny.write(tmp_path / "b", 2)
    tiny.edit_tensors(b, lambda t: t.update({GATE: tiny.with_value(t[GATE], value, 3)}))
    said = refused(a, b, alpha=0.0)
    assert said == f"tensor '{GATE}': the result is too large for {name}, in which '{a / SINGLE}' stores it"


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_that_is_none(pair: Folders, alpha: float) -> None:
    assert "give a number from 0 (all of B) to 1 (all of A)" in refused(*pair, ExportError, alpha=alpha)


def test_outputs_that_exist(pair: Folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    for output in (tmp_path / "empty", tmp_path / "dangling", *pair, pair[0] / SINGLE):
        with pytest.raises(ExportError, match=r"exists already; choose another name or remove it"):
            merge_checkpoints(*pair, output)
    for output in ("", "..", "/"):
        with pytest.raises(ExportError, match="cannot be a checkpoint's name"):
            merge_checkpoints(*pair, output)
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f, m: m.update({NORM: "../b/model.safetensors"}), "names shards outside the folder"),
        (lambda f, m: m.update({NORM: "gone.safetensors"}), "lacks the shards gone.safetensors"),
        (lambda f, m: m.update(new=m[NORM]), "lists tensors that their shard does not hold: new"),
        (lambda f, m: m.clear(), "has no usable weight_map"),
        (
            lambda f, m: m.update(dict.fromkeys(m, (f / m[NORM]).rename(f / "merge.json").name)),
            "not called .safetensors",
        ),
    ],
)
def test_odd_indexes(tmp_path: Path, edit: Callable[[Path, dict[str, str]], Any], message: str) -> None:
    a, b = tiny.write(tmp_path / "a", 1), tiny.write(tmp_path / "b", 2)
    (a / SINGLE).rename(a / "model-1.safetensors")
    (a / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors(a), "model-1.safetensors")}))
    tiny.edit_json(a / INDEX, lambda i: edit(a, i["weight_map"]))
    assert message in refused(a, b)


def test_folders_that_are_none(pair: Folders, tmp_path: Path) -> None:
    assert "there is no checkpoint folder" in refused(tmp_path / "gone", pair[1])
    (pair[1] / "config.json").unlink()
    assert "is missing: is this a Fun-Audio-Chat checkpoint folder?" in refused(*pair)


def test_a_source_that_changes_meanwhile(pair: Folders, tmp_path: Path) -> None:
    def touch(what: str, done: int, total: int) -> None:
        if what.startswith("merging"):
            os.utime(pair[1] / SINGLE, ns=(1, 1))

    assert "a source file was changed while it was merged" in refused(*pair, ExportError, progress=touch)


@pytest.mark.parametrize("moment", ["hashing a", "merging"])
def test_a_source_that_goes_away(pair: Folders, moment: str) -> None:
    def remove(what: str, done: int, total: int) -> None:
        if what.startswith(moment):
            (pair[1] / SINGLE).unlink(missing_ok=True)

    assert refused(*pair, progress=remove) == f"cannot read '{pair[1] / SINGLE}': No such file or directory"


def test_a_source_that_becomes_shorter(pair: Folders) -> None:
    def cut(what: str, done: int, total: int) -> None:
        if what == "hashing b" and done == total:
            os.truncate(pair[1] / SINGLE, 5000)

    assert f"'{pair[1] / SINGLE}' became shorter while it was read" in refused(*pair, progress=cut)
