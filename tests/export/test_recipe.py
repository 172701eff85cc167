"""Which tensor is stored how: rules, files of rules, and what the manifest says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ExportError
from edge_sdk.export.bundle_writer import work_path
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.language import load_language
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.quantize import FP32, Scheme
from edge_sdk.export.random_checkpoint import MoESpec
from edge_sdk.export.recipe import Policy, Rule, make_recipe, manifest_policy, parse_rules, read_rules
from edge_sdk.export.vocoder import build_vocoder
from edge_sdk.export.vocoder_checkpoint import read_vocoder
from tests import speech_goldens as goldens
from tests import tiny
from tests.vocoder import goldens as vocoder_goldens

INT4, INT8 = Scheme("int4", 128), Scheme("int8", 128)


def chosen(precision: str, folder: Path, block: int = 128) -> dict[str, Scheme]:
    """What a precision makes of every matrix and table of a checkpoint."""
    policy = Policy(make_recipe(precision, block).rules)
    load_language(Checkpoint(folder), policy)
    return policy.chosen


# -- the precisions' own


def test_full_precision_narrows_nothing() -> None:
    assert set(chosen("fp32", goldens.CHECKPOINT).values()) == {FP32}


def test_int8_takes_everything() -> None:
    assert set(chosen("int8", goldens.CHECKPOINT).values()) == {INT8}
    assert set(chosen("int8", goldens.CHECKPOINT, 32).values()) == {Scheme("int8", 32)}


def test_int4_keeps_fragile_and_small_things_wider() -> None:
    found = chosen("int4", goldens.CHECKPOINT)
    narrow = {name for name, scheme in found.items() if scheme == INT4}
    assert {scheme for name, scheme in found.items() if name not in narrow} == {INT8}
    head, text = "audio_invert_tower.crq_transformer.layers.0", "language_model.model.layers.0"
    assert {f"{text}.mlp.down_proj.weight", f"{text}.self_attn.q_proj.weight", f"{head}.mlp.up_proj.weight"} <= narrow
    for name in (
        f"{head}.mlp.down_proj.weight",
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "continuous_audio_tower.layers.1.fc2.weight",
        "fold/codebook*output_matching",
    ):
        assert found[name] == INT8, name


def test_routers_stay_wide(tmp_path: Path) -> None:
    moe = MoESpec(experts=4, experts_per_token=2, intermediate=32)
    folder = tiny.write(tmp_path / "c", text=dataclasses.replace(tiny.SPEC.text, hidden=64, moe=moe))
    found = chosen("int4", folder)
    assert found["language_model.model.layers.1.mlp.gate.weight"] == FP32
    assert found["language_model.model.layers.1.mlp.experts.gate_up"] == INT4


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_of_the_vocoder_the_blocks_of_the_flow(precision: str) -> None:
    """What goes in and out of the flow, and the waveform part, are float32."""
    policy = Policy(make_recipe(precision).rules)
    graphs = build_vocoder(read_vocoder(vocoder_goldens.TINY), policy)
    assert {key: g.precision for key, g in graphs.items()} == {
        "flow_tokens": "fp32", "flow": "int8", "f0": "fp32", "waveform": "fp32",
    }  # fmt: skip
    narrow = {name for name, scheme in policy.chosen.items() if scheme.quantized}
    assert all(name.startswith("decoder.estimator.transformer_blocks.") for name in narrow)
    assert len(narrow) == 4 * 2


# -- files


def written(folder: Path, value: Any, name: str = "r.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    rules = [{"match": "*.fc1.weight", "scheme": "fp16"}, {"match": "*", "scheme": "int8", "block": 64}]
    text = "rules:\n  - {match: '*.fc1.weight', scheme: fp16}\n  - match: '*'\n    scheme: int8\n    block: 64\n"
    expected = (Rule("*.fc1.weight", Scheme("fp16")), Rule("*", Scheme("int8", 64)))
    assert read_rules(written(tmp_path, {"rules": rules})) == expected
    assert read_rules(written(tmp_path, text, "r.yaml")) == expected
    assert parse_rules([r.to_json() for r in expected], "again") == expected


def test_the_first_match_wins_and_blocks_default_to_the_option(tmp_path: Path) -> None:
    file = written(tmp_path, {"rules": [{"match": "a.*", "scheme": "int4"}, {"match": "a.b", "scheme": "fp32"}]})
    policy = Policy(make_recipe("int8", 32, file).rules)
    assert policy.scheme("a.b") == Scheme("int4", 32)
    assert policy.scheme("c") == Scheme("int8", 32)
    with pytest.raises(ExportError, match=r"recipe: 'a\.b' decides nothing"):
        policy.check_used(make_recipe("int8", 32, file).own)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "cannot read recipe"),
        ([], "must be an object with rules"),
        ({}, "missing rules"),
        ({"rules": [], "more": 1}, "unknown more"),
        ({"rules": {}}, "'rules' must be a list"),
        ({"rules": [1]}, "rule 1 must be an object"),
        ({"rules": [{"match": "*"}]}, "rule 1: missing scheme"),
        ({"rules": [{"match": "*", "scheme": "int8", "bits": 8}]}, "rule 1: unknown bits"),
        ({"rules": [{"match": "", "scheme": "int8"}]}, "'match' must be a pattern of names"),
        ({"rules": [{"match": 3, "scheme": "int8"}]}, "'match' must be a pattern of names"),
        ({"rules": [{"match": "*", "scheme": "int2"}]}, "scheme 'int2' is not one of fp32, fp16, int8, int4"),
        ({"rules": [{"match": "*", "scheme": ["int8"]}]}, "is not one of fp32"),
        (
            {"rules": [{"match": "*", "scheme": "int4", "block": 64}]},
            "int4 takes blocks of 32 or 128, found 64",
        ),
        ({"rules": [{"match": "*", "scheme": "int8", "block": True}]}, "'block' must be a number"),
        ({"rules": [{"match": "*", "scheme": "fp16", "block": 32}]}, "fp16 takes no block, found 32"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, value: Any, message: str) -> None:
    file = written(tmp_path, value)
    with pytest.raises(ExportError, match=message):
        export_bundle(tmp_path / "never read", None, tmp_path / "x.bundle", ExportOptions(recipe=file))
    assert not work_path(tmp_path / "x.bundle").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read recipe '.*none\.yaml'"):
        make_recipe("int4", file=tmp_path / "none.yaml")


def test_a_block_that_no_kernel_takes() -> None:
    with pytest.raises(ExportError, match="int4 takes blocks of 32 or 128, found 64"):
        make_recipe("int8", 64)


@pytest.mark.parametrize("match", ["model.layers.*", "*.input_layernorm.weight", "*.conv1.weight", "LANGUAGE_MODEL.*"])
def test_a_pattern_that_decides_nothing(tmp_path: Path, match: str) -> None:
    """A typing mistake, and what is no matrix or table, before anything is written."""
    file = written(tmp_path, {"rules": [{"match": match, "scheme": "fp32"}]})
    with pytest.raises(ExportError, match="decides nothing: no matrix or table has such a name") as e:
        export_bundle(goldens.CHECKPOINT, None, tmp_path / "x.bundle", ExportOptions("int4", recipe=file))
    assert "There are: audio_invert_tower" in str(e.value)
    assert not work_path(tmp_path / "x.bundle").exists()


# -- in the bundle


def test_what_the_manifest_keeps(tmp_path: Path) -> None:
    """Precision, the rules that decided something, what could not be done; the same policy comes out of it."""
    file = written(tmp_path, {"rules": [{"match": "*.layers.0.mlp.up_proj.weight", "scheme": "fp32"}]})
    moe = MoESpec(experts=3, experts_per_token=2, intermediate=10)
    checkpoint = tiny.write(tmp_path / "c", text=dataclasses.replace(tiny.SPEC.text, moe=moe))
    options = ExportOptions("int4", block=32, recipe=file)
    with Bundle.open(export_bundle(checkpoint, None, tmp_path / "x.bundle", options)) as bundle:
        recipe = bundle.manifest.recipe
        precisions = {key: g.precision for key, g in bundle.manifest.graphs.items()}
    assert recipe["precision"] == "int4"
    assert recipe["rules"][0] == {"match": "*.layers.0.mlp.up_proj.weight", "scheme": "fp32"}
    assert recipe["rules"][-1] == {"match": "*", "scheme": "int4", "block": 32}
    assert len(recipe["exceptions"]) == 2 * tiny.SPEC.text.layers
    assert all("not filled by blocks" in reason for reason in recipe["exceptions"].values())
    assert precisions == {
        "encoder": "int8",
        "backbone": "int4",
        "speech_input": "int8",
        "speech_head": "int4",
        "speech_head_fused": "int4",
    }
    policy = manifest_policy(recipe, "x")
    assert policy.scheme("audio_invert_tower.crq_transformer.layers.0.mlp.up_proj.weight") == FP32
    assert policy.scheme("language_model.model.layers.1.mlp.experts.down") == FP32
    assert policy.scheme("language_model.lm_head.weight") == Scheme("int8", 32)


def test_a_full_precision_bundle_has_one_rule(speech_bundle: Bundle) -> None:
    assert speech_bundle.manifest.recipe == {
        "precision": "fp32", "rules": [{"match": "*", "scheme": "fp32"}], "exceptions": {},
    }  # fmt: skip
