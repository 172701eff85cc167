"""Configuration sections read themselves strictly; tensor borders are checked by name, type and shape."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.config import (
    EncoderConfig,
    FlowConfig,
    MelConfig,
    ModelConfig,
    MoEConfig,
    Section,
    SpeechIds,
    TextIds,
    TransformerConfig,
    WaveformConfig,
)
from edge_sdk.errors import BundleError, Error
from edge_sdk.tensors import DTYPES, TensorSpec

TEXT = st.text(max_size=5)
POSITIVE = st.integers(1, 1000)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def sections(cls: type, **fields: Any) -> Any:
    return st.builds(cls, **fields)


MOE = sections(
    MoEConfig,
    num_experts=POSITIVE,
    experts_per_token=POSITIVE,
    intermediate_size=POSITIVE,
    normalize_weights=st.booleans(),
    sparse_layers=st.lists(POSITIVE, max_size=3).map(tuple),
)
STACK = sections(
    TransformerConfig,
    **dict.fromkeys(
        ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size"), POSITIVE
    ),
    rms_norm_eps=FLOATS,
    rope_theta=FLOATS,
    moe=st.none() | MOE,
)
MODEL = sections(
    ModelConfig,
    group_size=POSITIVE,
    mel=sections(
        MelConfig, **dict.fromkeys(("n_mels", "n_fft", "hop_samples", "sample_rate", "max_samples"), POSITIVE)
    ),
    encoder=sections(
        EncoderConfig,
        **dict.fromkeys(("d_model", "num_layers", "num_heads", "ffn_dim", "n_mels", "n_window"), POSITIVE),
    ),
    backbone=STACK,
    speech_head=st.none() | STACK,
    text_ids=sections(
        TextIds,
        **dict.fromkeys(("vocab_size", "audio_bos", "audio_eos", "audio"), POSITIVE),
        eos=st.lists(POSITIVE, max_size=3).map(tuple),
        sil=st.none() | POSITIVE,
    ),
    speech_ids=sections(SpeechIds, **dict.fromkeys(("codebook_size", "bos", "eos", "pad"), POSITIVE)),
    audio_features_mode=TEXT,
)


@given(MODEL)
def test_a_section_comes_back_through_json(model: ModelConfig) -> None:
    value = json.loads(json.dumps(model.to_json()))
    found = ModelConfig.from_json(value)
    assert found == model
    assert isinstance(found.text_ids.eos, tuple)
    assert found.to_json() == model.to_json()


def example() -> dict[str, Any]:
    stack = TransformerConfig(8, 1, 2, 1, 4, 8, 1e-6, 1e4)
    model = ModelConfig(
        group_size=5,
        mel=MelConfig(128, 400, 160, 16000, 480000),
        encoder=EncoderConfig(8, 1, 2, 8, 128, 100),
        backbone=stack,
        speech_head=None,
        text_ids=TextIds(100, (3,), 1, 2, 4),
        speech_ids=SpeechIds(10, 7, 8, 9),
        audio_features_mode="replace",
    )
    value: dict[str, Any] = json.loads(json.dumps(model.to_json()))
    return value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(speed=1, ahead=2), r"^here: unknown \['ahead', 'speed'\]$"),
        (lambda v: (v.pop("mel"), v.pop("encoder")), r"^here: missing \['encoder', 'mel'\]$"),
        (lambda v: (v.pop("mel"), v.update(x=1)), r"^here: unknown \['x'\], missing \['mel'\]$"),
        (lambda v: v["backbone"].update(x=1), r"^here\.backbone: unknown \['x'\]$"),
        (lambda v: v.update(group_size=5.0), r"^here\.group_size must be int, found 5\.0$"),
        (lambda v: v.update(group_size=True), r"^here\.group_size must be int, found True$"),
        (lambda v: v.update(group_size=None), r"^here\.group_size must be int, found None$"),
        (lambda v: v.update(backbone=None), r"^here\.backbone must be an object, found NoneType$"),
        (lambda v: v.update(backbone=[]), r"^here\.backbone must be an object, found list$"),
        (lambda v: v["backbone"].update(rms_norm_eps="1e-6"), r"rms_norm_eps must be float, found '1e-6'"),
        (lambda v: v["backbone"].update(rms_norm_eps=True), r"rms_norm_eps must be float, found True"),
        (lambda v: v["text_ids"].update(eos=3), r"text_ids\.eos must be tuple"),
        (lambda v: v["text_ids"].update(eos="34"), r"text_ids\.eos must be tuple"),
        (lambda v: v["text_ids"].update(eos=[3, "4"]), r"text_ids\.eos\[1\] must be int, found '4'"),
        (lambda v: v["text_ids"].update(sil="4"), r"text_ids\.sil must be int, found '4'"),
        (lambda v: v.update(audio_features_mode=1), r"audio_features_mode must be str, found 1"),
        (lambda v: v["backbone"].update(moe={}), r"backbone\.moe: missing"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(edit: Any, message: str) -> None:
    value = example()
    edit(value)
    with pytest.raises(BundleError, match=message):
        ModelConfig.from_json(value, "here")


def test_a_whole_number_will_do_for_a_float() -> None:
    value = example()
    value["backbone"]["rope_theta"] = 10000
    found = ModelConfig.from_json(value).backbone.rope_theta
    assert found == 10000.0
    assert isinstance(found, float)


@dataclass(frozen=True)
class Inner(Section):
    a: int = 1


@dataclass(frozen=True)
class Outer(Section):
    names: dict[str, Inner] = field(default_factory=dict)
    table: tuple[tuple[int, ...], ...] = ()
    anything: Any = None


def test_dictionaries_and_nested_tuples() -> None:
    found = Outer.from_json({"names": {"x": {"a": 3}}, "table": [[1, 2], []], "anything": {"k": [1]}})
    assert found == Outer({"x": Inner(3)}, ((1, 2), ()), {"k": [1]})
    assert Outer.from_json({}) == Outer()
    for value, message in (
        ({"names": {"x": {"b": 3}}}, r"Outer\.names\.x: unknown"),
        ({"names": {1: {}}}, r"Outer\.names must be str, found 1"),
        ({"table": [[1], 2]}, r"Outer\.table\[1\] must be tuple"),
        ({"table": [[1, None]]}, r"Outer\.table\[0\]\[1\] must be int, found None"),
    ):
        with pytest.raises(BundleError, match=message):
            Outer.from_json(value)


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig.from_json(example()).group_size = 4  # type: ignore[misc]


# -- what follows from the sizes


def test_rates_of_the_released_model() -> None:
    model = ModelConfig.from_json(example())
    assert (model.token_rate_hz, model.step_ms, model.encoder.window_frames) == (25.0, 200.0, 200)
    assert model.backbone.cache_values_per_position == 2 * 1 * 1 * 4


@given(st.integers(0, 700_000))
def test_ids_of_a_clip_are_counted_as_upstream_counts(samples: int) -> None:
    model = ModelConfig.from_json(example())
    ids = int(samples / 16000.0 * 25)
    assert model.audio_token_count(samples) == ids
    assert model.placeholder_count(samples) == (ids + 4) // 5


def test_the_lengths_at_which_a_division_would_give_one_more() -> None:
    """fixtures rule 2: 69 multiples of 640 below 40 s have one id fewer, for nine of them a placeholder is lost."""
    model = ModelConfig.from_json(example())
    fewer = [n for n in range(0, 640_000, 640) if model.audio_token_count(n) != n // 640]
    assert len(fewer) == 69
    assert fewer[0] == 18560
    lost = [n for n in fewer if model.placeholder_count(n) != -(-(n // 640) // 5)]
    assert lost == [74240, 128640, 144640, 160640, 259840, 275840, 291840, 307840, 323840]


def test_strides_of_the_released_vocoder() -> None:
    values = {f.name: 1 for f in dataclasses.fields(WaveformConfig)}
    waveform = WaveformConfig(**{**values, "base_channels": 512, "upsample_rates": (8, 5, 3), "stft_hop": 4})  # type: ignore[arg-type]
    assert waveform.samples_per_frame == 480
    assert [waveform.stage_channels(i) for i in range(waveform.stages)] == [256, 128, 64]
    assert [waveform.source_stride(i) for i in range(3)] == [15, 3, 1]
    assert [waveform.source_down_kernel(i) for i in range(3)] == [30, 6, 1]
    flow = {f.name: 1 for f in dataclasses.fields(FlowConfig)}
    assert FlowConfig(**{**flow, "token_rate_hz": 25.0, "frames_per_token": 2}).frame_rate_hz == 50.0  # type: ignore[arg-type]


# -- tensor borders


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 3) | st.text("NS", min_size=1, max_size=2), max_size=3),
)
def test_a_spec_takes_what_it_describes_and_nothing_else(dtype: str, shape: list[Any]) -> None:
    spec = TensorSpec("x", dtype, tuple(shape))
    assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    sizes = [2 if isinstance(d, str) else d for d in shape]
    good = np.zeros(sizes, spec.numpy_dtype)
    spec.check(good)
    bad = [np.zeros([*sizes, 1], spec.numpy_dtype), np.zeros(sizes, np.uint16)]
    bad += [np.zeros([*sizes[:i], d + 1, *sizes[i + 1 :]], dtype) for i, d in enumerate(shape) if isinstance(d, int)]
    if spec.numpy_dtype.itemsize > 1:
        bad.append(good.astype(spec.numpy_dtype.newbyteorder(">")))
    for array in bad:
        with pytest.raises(Error, match="graph 'g': tensor 'x' wants") as caught:
            spec.check(array, "graph 'g': ")
        assert str(list(array.shape)) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"name": "x"}, {"name": "x", "dtype": "float32", "shape": [1], "more": 1},
     {"name": 1, "dtype": "float32", "shape": []}, {"name": "x", "dtype": 1, "shape": []},
     {"name": "x", "dtype": "float32", "shape": [1.5]}, {"name": "x", "dtype": "float32", "shape": [None]},
     {"name": "x", "dtype": "bfloat16", "shape": []}],
)  # fmt: skip
def test_a_malformed_spec(value: Any) -> None:
    with pytest.raises(BundleError):
        TensorSpec.from_json(value)
