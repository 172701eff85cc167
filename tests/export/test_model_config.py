"""config.json and its neighbours: what is read, and every option that is refused, by its key."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.config import (
    EncoderConfig,
    MelConfig,
    ModelConfig,
    MoEConfig,
    SpeechIds,
    TextIds,
    TransformerConfig,
)
from edge_sdk.errors import CheckpointError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.language import load_language
from edge_sdk.export.model_config import LanguageConfig, read_language_config
from edge_sdk.export.random_checkpoint import MoESpec, SpeechIdSpec
from tests import speech_goldens as goldens
from tests import tiny

Edit = Callable[[Any], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def read(folder: Path) -> LanguageConfig:
    return read_language_config(Checkpoint(folder))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(folder)


# -- what is read


def test_the_golden_checkpoint() -> None:
    config = read(goldens.CHECKPOINT)
    assert config.model == ModelConfig(
        group_size=5,
        mel=MelConfig(n_mels=128, n_fft=400, hop_samples=160, sample_rate=16000, max_samples=480000),
        encoder=EncoderConfig(d_model=48, num_layers=2, num_heads=4, ffn_dim=96, n_mels=128, n_window=100),
        backbone=TransformerConfig(64, 3, 4, 2, 32, 160, 1e-6, 5e6),
        speech_head=TransformerConfig(40, 2, 4, 2, 16, 96, 1e-6, 1e6),
        text_ids=TextIds(vocab_size=960, eos=(938,), audio_bos=944, audio_eos=945, audio=943, sil=947),
        speech_ids=SpeechIds(codebook_size=6565, bos=6561, eos=6562, pad=6563),
        audio_features_mode="replace",
    )
    assert not config.tied
    assert config.generation["max_new_tokens"] == 40


def test_the_codebooks_ids_may_stand_anywhere(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "c", speech=SpeechIdSpec(30, bos=33, eos=30, pad=31))
    assert read(folder).model.speech_ids == SpeechIds(34, 33, 30, 31)


def test_mixture_of_experts(tmp_path: Path) -> None:
    moe = MoESpec(experts=6, experts_per_token=2, intermediate=10, normalize=False, sparse_step=2, dense_layers=(1,))
    text = dataclasses.replace(tiny.SPEC.text, layers=6, moe=moe)
    folder = tiny.write(tmp_path / "c", text=text)
    assert read(folder).model.backbone.moe == MoEConfig(6, 2, 10, False, (3, 5))
    tiny.edit_json(folder / "config.json", lambda c: c["text_config"].pop("mlp_only_layers"))
    found = read(folder).model.backbone.moe
    assert found
    assert found.sparse_layers == (1, 3, 5)
    for key in ("norm_topk_prob", "decoder_sparse_step"):
        tiny.edit_json(folder / "config.json", lambda c: c["text_config"].pop(key))  # noqa: B023
    found = read(folder).model.backbone.moe
    assert found
    assert found.sparse_layers == tuple(range(6))
    assert not found.normalize_weights


def config_edit(folder: Path, edit: Edit) -> None:
    tiny.edit_json(folder / "config.json", edit)


def test_what_may_be_left_out(folder: Path) -> None:
    """Keys with a default in the reference, or another name elsewhere."""
    before = read(folder).model

    def edit(c: Any) -> None:
        text, audio = c["text_config"], c["audio_config"]
        for key in ("rms_norm_eps", "hidden_act", "attention_bias", "use_sliding_window", "rope_scaling", "sil_index"):
            del text[key]
        for key in ("encoder_layers", "activation_function", "continuous_features_mode", "max_source_positions"):
            del audio[key]
        del audio["enable_audio_invert_tower"]

    config_edit(folder, edit)
    (folder / "generation_config.json").unlink()
    (folder / "processor_config.json").unlink()
    tiny.edit_json(folder / "preprocessor_config.json", lambda p: p.clear())
    after = read(folder)
    assert after.generation == {}
    assert after.model.text_ids.sil is None
    assert after.model.encoder == before.encoder
    assert after.model.backbone == before.backbone
    assert after.model.mel == before.mel
    assert after.model.text_ids.eos == before.text_ids.eos, "from text_config where generation_config.json has none"


def test_eos_ids_of_generation_config_go_first(folder: Path) -> None:
    tiny.edit_json(folder / "generation_config.json", lambda g: g.update(eos_token_id=[3, 5]))
    assert read(folder).model.text_ids.eos == (3, 5)


def test_head_sizes_that_are_not_said(folder: Path) -> None:
    """As transformers has them: 128 in a dense stack, the width shared among the heads in one of experts."""
    config_edit(folder, lambda c: c["text_config"].pop("head_dim"))
    assert read(folder).model.backbone.head_dim == 128
    config_edit(folder, lambda c: c["text_config"].update(model_type="qwen3_moe", num_attention_heads=2))
    assert read(folder).model.backbone.head_dim == 20 // 2


def test_rotary_settings_old_and_new(folder: Path) -> None:
    for edit, theta in (
        (lambda t: t.update(rope_theta=123.0), 123.0),
        (lambda t: t.update(rope_scaling={"rope_type": "default"}), 123.0),
        (lambda t: t.update(rope_scaling={"type": "default"}), 123.0),
        (lambda t: t.update(rope_scaling={}), 123.0),
        (lambda t: t.pop("rope_theta"), 10000.0),
        (lambda t: t.update(rope_parameters={"rope_type": "default", "rope_theta": 456}), 456.0),
        (lambda t: t.update(rope_parameters={}), 10000.0),
    ):
        config_edit(folder, lambda c: edit(c["text_config"]))  # noqa: B023
        assert read(folder).model.backbone.rope_theta == theta


def test_tied_embeddings_wherever_they_are_said(folder: Path) -> None:
    config_edit(folder, lambda c: (c["text_config"].pop("tie_word_embeddings"), c.update(tie_word_embeddings=True)))
    assert read(folder).tied
    config_edit(folder, lambda c: c["text_config"].update(tie_word_embeddings=False))
    assert not read(folder).tied
    config_edit(folder, lambda c: (c.pop("tie_word_embeddings"), c["text_config"].pop("tie_word_embeddings")))
    assert not read(folder).tied


def test_a_model_that_only_writes(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "c", head=None)
    assert read(folder).model.speech_head is None


# -- what is refused


def text(**changes: Any) -> Edit:
    return lambda c: c["text_config"].update(changes)


def audio(**changes: Any) -> Edit:
    return lambda c: c["audio_config"].update(changes)


def head(**changes: Any) -> Edit:
    return lambda c: c["audio_config"]["crq_transformer_config"].update(changes)


def experts(**changes: Any) -> Edit:
    return text(model_type="qwen3_moe", **changes)


CRQ = r"config\.json\.audio_config\.crq_transformer_config"
TEXT = r"config\.json\.text_config"
AUDIO = r"config\.json\.audio_config"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(model_type="qwen2"), "model_type is 'qwen2', this exporter reads 'funaudiochat'"),
        (lambda c: c.pop("model_type"), "model_type is None"),
        (text(model_type="llama"), f"{TEXT}: 'model_type' is 'llama', supported is 'qwen3' or 'qwen3_moe'"),
        (text(model_type=["qwen3"]), f"{TEXT}: 'model_type'"),
        (head(model_type="gpt2"), f"{CRQ}: 'model_type' is 'gpt2'"),
        (text(hidden_act="gelu"), f"{TEXT}: 'hidden_act' is 'gelu', supported is 'silu'"),
        (head(hidden_act="relu"), f"{CRQ}: 'hidden_act'"),
        (text(attention_bias=True), f"{TEXT}: 'attention_bias' is True, supported is False"),
        (text(use_sliding_window=True), f"{TEXT}: 'use_sliding_window' is True"),
        (text(layer_types=["full_attention", "sliding_attention"]), f"{TEXT}: layer_types .* only full_attention"),
        (text(layer_types="full_attention"), f"{TEXT}: layer_types"),
        (text(rope_scaling={"rope_type": "yarn", "factor": 4.0}), f"{TEXT}: rope_scaling .*yarn.* is not supported"),
        (text(rope_scaling={"type": "linear", "factor": 4.0}), f"{TEXT}: rope_scaling"),
        (text(rope_scaling="yarn"), f"{TEXT}: 'rope_scaling' must be an object, found 'yarn'"),
        (text(rope_parameters={"rope_type": "llama3"}), f"{TEXT}.rope_parameters: 'rope_type' is 'llama3'"),
        (text(rope_parameters="default"), f"{TEXT}: 'rope_parameters' must be an object"),
        (text(rope_parameters={"partial_rotary_factor": 0.5}), "'partial_rotary_factor' is 0.5, supported is 1.0"),
        (text(partial_rotary_factor=0.25), f"{TEXT}: 'partial_rotary_factor' is 0.25"),
        (text(rope_theta=0), f"{TEXT}: 'rope_theta' must be a number above 0, found 0"),
        (text(rope_theta="1e6"), f"{TEXT}: 'rope_theta' must be a number"),
        (text(rms_norm_eps=float("nan")), f"{TEXT}: 'rms_norm_eps' must be a number above 0, found nan"),
        (text(rms_norm_eps=float("inf")), "'rms_norm_eps' must be a number above 0, found inf"),
        (text(rms_norm_eps=True), "'rms_norm_eps' must be a number"),
        (text(tie_word_embeddings="false"), f"{TEXT}: 'tie_word_embeddings' must be true or false, found 'false'"),
        (text(hidden_size=0), f"{TEXT}: 'hidden_size' must be an integer of at least 1, found 0"),
        (text(hidden_size=20.0), "'hidden_size' must be an integer"),
        (text(hidden_size=True), "'hidden_size' must be an integer"),
        (text(num_hidden_layers=-1), "'num_hidden_layers' must be an integer of at least 1"),
        (text(num_key_value_heads=3), f"{TEXT}: 4 attention heads do not divide into 3 key/value heads"),
        (text(head_dim=7), f"{TEXT}: head_dim 7 is odd"),
        (lambda c: c["text_config"].pop("intermediate_size"), "'intermediate_size' must be an integer.*found None"),
        (lambda c: c.pop("text_config"), r"config\.json: 'text_config' must be an object, found None"),
        (lambda c: c.update(audio_config=[]), r"config\.json: 'audio_config' must be an object, found \[\]"),
        (lambda c: c["audio_config"].pop("crq_transformer_config"), f"{AUDIO}: 'crq_transformer_config' must be"),
        (audio(activation_function="relu"), f"{AUDIO}: 'activation_function' is 'relu', supported is 'gelu'"),
        (audio(continuous_features_mode="concat"), "'continuous_features_mode' is 'concat', supported is 'replace' or"),
        (audio(enable_audio_invert_tower="yes"), "'enable_audio_invert_tower' must be true or false"),
        (audio(output_dim=21), "output_dim 21 is not text_config.hidden_size 20"),
        (audio(d_model=15), "d_model 15 must be even, at least 4, and divide into 2 heads"),
        (audio(d_model=2), "d_model 2 must be even, at least 4"),
        (audio(encoder_attention_heads=3), "d_model 16 must be even, at least 4, and divide into 3 heads"),
        (audio(n_window=1501), "n_window 1501 exceeds max_source_positions 1500"),
        (audio(n_window=0), "'n_window' must be an integer of at least 1"),
        (audio(group_size=0), "'group_size' must be an integer of at least 1"),
        (audio(group_size="5"), "'group_size' must be an integer"),
        # ids outside their vocabulary
        (lambda c: c.update(audio_token_index=276), r"'audio_token_index' is 276, outside the vocabulary of 276"),
        (text(audio_bos_index=10**6), f"{TEXT}: 'audio_bos_index' is 1000000, outside the vocabulary of 276"),
        (text(audio_eos_index=-1), f"{TEXT}: 'audio_eos_index' must be an integer of at least 0, found -1"),
        (text(sil_index=276), "'sil_index' is 276, outside"),
        (text(audio_bos_index=None), "'audio_bos_index' must be an integer"),
        (audio(bos_token_id=40), f"{AUDIO}: 'bos_token_id' is 40, outside the vocabulary of 40"),
        (audio(eos_token_id=40), "'eos_token_id' is 40, outside"),
        (audio(pad_token_id=99), "'pad_token_id' is 99, outside"),
        # experts
        (experts(num_experts=4, num_experts_per_tok=5), "num_experts_per_tok 5 exceeds num_experts 4"),
        (experts(num_experts=0), "'num_experts' must be an integer of at least 1"),
        (experts(decoder_sparse_step=0), "'decoder_sparse_step' must be an integer of at least 1"),
        (experts(mlp_only_layers=3), "mlp_only_layers must be a list of layer numbers, found 3"),
        (experts(mlp_only_layers=["1"]), "mlp_only_layers must be a list of layer numbers"),
        (experts(norm_topk_prob=1), "'norm_topk_prob' must be true or false"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_supported_is_named(folder: Path, edit: Edit, message: str) -> None:
    config_edit(folder, edit)
    refused(folder, message)


@pytest.mark.parametrize("eos", [276, -1, [3, 276], [], "3", None, True, [True], [[3]]])
def test_eos_ids_outside_the_vocabulary(folder: Path, eos: Any) -> None:
    tiny.edit_json(folder / "generation_config.json", lambda g: g.update(eos_token_id=eos))
    refused(folder, r"eos_token_id .* is not a list of ids inside the vocabulary of 276")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(feature_size=80), "feature_size 80 is not num_mel_bins 128"),
        (lambda p: p.update(dither=1.0), r"preprocessor_config\.json: 'dither' is 1\.0, supported is 0\.0"),
        (lambda p: p.update(n_fft=1), "'n_fft' must be an integer of at least 2"),
        (lambda p: p.update(hop_length="160"), "'hop_length' must be an integer"),
        (lambda p: p.update(n_fft=401), r"preprocessor_config\.json: the mel needs an even n_fft"),
        (lambda p: p.update(hop_length=400), "hop_samples of at most half of it"),
        (lambda p: p.update(n_samples=480_001), "max_samples above n_fft that divide into hops"),
        (lambda p: p.update(sampling_rate=0), "'sampling_rate' must be an integer of at least 1"),
    ],
)
def test_a_front_end_that_is_not_supported(folder: Path, edit: Edit, message: str) -> None:
    tiny.edit_json(folder / "preprocessor_config.json", edit)
    refused(folder, message)


def test_group_sizes_that_disagree(folder: Path) -> None:
    """The speech tokenizer's counts; the processor's only where that has none, as upstream reads them."""
    tiny.edit_json(folder / "processor_config.json", lambda p: p.update(audio_group_size=4))
    assert read(folder).model.group_size == 5
    tiny.edit_json(folder / "speech_tokenizer" / "tokenizer_config.json", lambda t: t.pop("audio_group_size"))
    refused(folder, r"processor_config\.json: audio_group_size is 4, config\.json has group_size 5")
    tiny.edit_json(folder / "speech_tokenizer" / "tokenizer_config.json", lambda t: t.update(audio_group_size=3))
    refused(folder, r"speech_tokenizer/tokenizer_config\.json: audio_group_size is 3, config\.json has group_size 5")
    shutil.rmtree(folder / "speech_tokenizer")
    (folder / "processor_config.json").unlink()
    assert read(folder).model.group_size == 5


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name}' is missing: is this a Fun-Audio-Chat checkpoint folder")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"]
)
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_file_that_is_not_json(folder: Path, name: str, data: bytes) -> None:
    (folder / "speech_tokenizer" / "tokenizer_config.json").write_text("{}")
    (folder / name).write_bytes(data)
    refused(folder, f"{name}' must hold a JSON object|cannot read '.*{name}'")


# -- the text files


def loaded(folder: Path) -> Any:
    return load_language(Checkpoint(folder))


def not_loaded(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded(folder)


def test_the_template_in_its_old_places(folder: Path) -> None:
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    not_loaded(folder, "has no chat template: neither chat_template.jinja nor one in chat_template.json or tokenizer_")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]
    for name, value in (
        ("tokenizer_config.json", source),
        ("tokenizer_config.json", named),
        ("chat_template.json", source),
        ("chat_template.json", named),
    ):
        path = folder / name
        before = path.read_text() if path.exists() else None
        path.write_text(json.dumps({**json.loads(before or "{}"), "chat_template": value}))
        assert loaded(folder).chat_template == source
        path.unlink() if before is None else path.write_text(before)
    (folder / "chat_template.jinja").write_text("")
    not_loaded(folder, "has no chat template")


def test_a_template_that_does_not_work(folder: Path) -> None:
    """Found before any weight is written."""
    for source, message in (
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ raise_exception('system messages are not supported') }}", "system messages are not supported"),
        ("{{ messages[0].content.nothing.here }}", "chat template failed"),
        ("{{ ''.__class__.__mro__ }}", "chat template failed.*unsafe"),
        ("{{ messages | nofilter }}", "not valid Jinja"),
    ):
        (folder / "chat_template.jinja").write_text(source)
        not_loaded(folder, message)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    not_loaded(folder, r"cannot read '.*chat_template\.jinja'")


def test_a_tokenizer_that_does_not_fit(folder: Path) -> None:
    path = folder / "tokenizer.json"
    whole = path.read_text()
    for edit, message in (
        (lambda t: t["model"]["vocab"].update({"zzz": 276}), r"ids up to 276, config\.json a vocabulary of 276"),
        (lambda t: t["model"].update(type="Unigram"), "not a byte-level BPE tokenizer"),
        (lambda t: t.update(decoder=None), "not a byte-level BPE tokenizer"),
        (lambda t: t.pop("added_tokens"), "not a usable tokenizer"),
        (lambda t: t["added_tokens"].clear(), "no added token for the audio id"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "strip spaces"),
    ):
        path.write_text(whole)
        tiny.edit_json(path, edit)
        not_loaded(folder, message)
    for text in ("", "{", "[]", '"x"'):
        path.write_text(text)
        not_loaded(folder, "not a usable tokenizer")
    path.unlink()
    not_loaded(folder, r"has no tokenizer\.json")


def test_cheap_checks_come_before_the_weights(folder: Path) -> None:
    """A checkpoint of 16 GB is not read through to be refused for its template."""
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    tiny.edit_tensors(folder, lambda t: t.clear() or t.update(x=tiny.zeros("F32", 1)))
    not_loaded(folder, "not valid Jinja")
