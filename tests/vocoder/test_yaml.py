"""`cosyvoice3.yaml` is data: tags run nothing, sections nobody asks for are never looked at, problems are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_sdk.errors import CheckpointError
from edge_sdk.export.vocoder_hyperparameters import read_hyperparameters
from edge_sdk.export.vocoder_yaml import MAX_BYTES, Document, Tagged
from tests.vocoder import goldens
from tests.vocoder.folders import Sizes, yaml_text

GOLDEN_TEXT = (goldens.TINY / "cosyvoice3.yaml").read_text()


def document(folder: Path, text: str) -> Document:
    path = folder / "cosyvoice3.yaml"
    path.write_text(text)
    return Document(path)


def refusal(folder: Path, text: str) -> str:
    (folder / "cosyvoice3.yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_hyperparameters(folder / "cosyvoice3.yaml")
    return str(caught.value)


def test_golden_file_gives_the_fixture_sizes() -> None:
    found = read_hyperparameters(goldens.TINY / "cosyvoice3.yaml")
    flow, waveform, constants = found.flow, found.waveform, goldens.index()["constants"]
    assert (flow.dim, flow.depth, flow.heads, flow.head_dim, found.ff_dim) == (64, 2, 2, 32, 128)
    assert flow.chunk_frames == 50  # a !ref with arithmetic
    assert flow.cfg_rate == constants["inference_cfg_rate"]
    assert waveform.sample_rate == constants["sample_rate"]
    assert waveform.samples_per_frame == constants["samples_per_mel_frame"]
    assert flow.lookahead_tokens == constants["pre_lookahead_tokens"]
    assert waveform.audio_limit == constants["audio_limit"]


@pytest.mark.parametrize(("word", "running"), [("running", True), ("held", False)])
def test_how_the_phase_goes(tmp_path: Path, word: str, running: bool) -> None:
    """Our own key; upstream's files do not have it, and hold."""
    text = GOLDEN_TEXT.replace("    nsf_alpha:", f"    nsf_phase: {word}\n    nsf_alpha:")
    (tmp_path / "cosyvoice3.yaml").write_text(text)
    assert read_hyperparameters(tmp_path / "cosyvoice3.yaml").waveform.running_phase is running
    assert not read_hyperparameters(goldens.TINY / "cosyvoice3.yaml").waveform.running_phase
    assert "hift: 'nsf_phase' is 'walking'; supported: 'held', 'running'" in refusal(
        tmp_path, text.replace(f"nsf_phase: {word}", "nsf_phase: walking")
    )


def test_tags_are_kept_and_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = GOLDEN_TEXT + (
        f"\nevil1: !apply:os.system ['touch {marker}']"
        f"\nevil2: !new:os.system\n    command: 'touch {marker}'"
        f"\nevil3: !name:subprocess.call ['touch {marker}']"
        "\nevil4: !include:/etc/passwd x"
        "\nevil5: !anything [1, {a: 2}]\n"
    )
    found = document(tmp_path, text)
    read_hyperparameters(found.path)
    assert not marker.exists()
    assert found.root["evil1"] == Tagged("apply:os.system", [f"touch {marker}"])
    assert found.root["evil5"] == Tagged("anything", [1, {"a": 2}])


@pytest.mark.parametrize(
    "line",
    [
        "x: !!python/object/apply:os.mkdir ['{marker}']",
        "x: !!python/name:os.system",
        "x: !<tag:yaml.org,2002:python/object/new:os.mkdir> ['{marker}']",
    ],
)
def test_python_tags_are_refused(tmp_path: Path, line: str) -> None:
    marker = tmp_path / "ran"
    message = refusal(tmp_path, GOLDEN_TEXT + "\n" + line.format(marker=marker) + "\n")
    assert "not a vocoder configuration" in message and "python" in message
    assert not marker.exists()


def test_skipped_sections_may_be_wrong(tmp_path: Path) -> None:
    text = GOLDEN_TEXT + "\nanother: {a: !ref <nothing>, b: !ref open('x')}\n"
    text = text.replace("llm_input_size: !ref <llm_input_size>", "llm_input_size: !ref <there_is_no_such_key>")
    (tmp_path / "cosyvoice3.yaml").write_text(text)
    assert read_hyperparameters(tmp_path / "cosyvoice3.yaml").flow.dim == 64


@pytest.mark.parametrize(
    ("expression", "value"),
    [("<a>", 6), ("<a> * <b>", 24), ("(<a> + 2) / <b> - 1", 1.0), ("-<a> // 4", -2), ("<c>", 6), ("<text>", "hello")],
)
def test_references(tmp_path: Path, expression: str, value: object) -> None:
    found = document(tmp_path, f"a: 6\nb: 4\nc: !ref <a>\ntext: hello\nx: !ref {expression!r}\n")
    assert found.resolve(found.root["x"]) == value


@pytest.mark.parametrize(
    "expression",
    [
        "<nothing>",
        "<x>",
        "<text> * 2",
        "__import__('os').getcwd()",
        "<a>.__class__",
        "<a> ** <a>",
        "(lambda: 1)()",
        "<a> / 0",
        "<a> +",
        "'a' * 9",
    ],
)
def test_references_that_are_refused(tmp_path: Path, expression: str) -> None:
    text = f'a: 99999\ntext: hello\nx: !ref "{expression}"\n'
    found = document(tmp_path, text)
    with pytest.raises(CheckpointError):
        found.resolve(found.root["x"])


def test_a_bad_reference_in_use_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOLDEN_TEXT.replace("!ref <spk_embed_dim>", "!ref os.getcwd()"))
    assert "flow: 'spk_embed_dim'" in message and "os.getcwd()" in message


def test_all_missing_keys_in_one_message(tmp_path: Path) -> None:
    removed = ("depth: 2", "solver: 'euler'", "base_channels: 64", "hop_len: 4", "pre_lookahead_len: 3\n    pre_l")
    text = GOLDEN_TEXT
    for line in removed:
        text = text.replace(line, "pre_l" if line.endswith("pre_l") else "")
    message = refusal(tmp_path, text)
    for key in ("depth", "solver", "base_channels", "hop_len", "pre_lookahead_len"):
        assert f"'{key}' is missing" in message
    assert "flow.decoder.estimator" in message and "hift.istft_params" in message


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("solver: 'euler'", "solver: 'midpoint'", "'solver' is 'midpoint'; supported: 'euler'"),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", "'t_scheduler' is 'linear'"),
        ("output_type: 'mel'", "output_type: 'latent'", "'output_type' is 'latent'"),
        ("sample_rate: 24000", "sample_rate: 22050", "make 24000"),
        ("sampling_rate: !ref <sample_rate>", "sampling_rate: 16000", "'sampling_rate' is 16000, but sample_rate"),
        ("input_frame_rate: !ref <token_frame_rate>", "input_frame_rate: 50", "'input_frame_rate' is 50"),
        ("mel_dim: 80", "mel_dim: 100", "'mel_dim' is 100"),
        ("upsample_rates: [8, 5, 3]", "upsample_rates: [8, 5]", "upsample_kernel_sizes' has 3 entries"),
        ("upsample_rates: [8, 5, 3]", "upsample_rates: [8, 5, -3]", "'upsample_rates' must be a list"),
        ("dim_head: 32", "dim_head: 33", "'dim_head' is 33"),
        ("dim_head: 32", "dim_head: true", "'dim_head' must be a whole number >= 2, found True"),
        ("depth: 2", "depth: 2\n            qk_norm: rms_norm", "'qk_norm' is not known here"),
        ("audio_limit: 0.99", "audio_limit: loud", "'audio_limit' must be a number, found 'loud'"),
        ("audio_limit: 0.99", "audio_limit: .inf", "'audio_limit' must be a number"),
        ("num_class: 1", "num_class: 2", "'num_class' is 2"),
        ("hop_len: 4", "hop_len: 5", "an STFT of 16 with hop 5 is not supported"),
        ("CausalMaskedDiffWithDiT", "CausalMaskedDiffWithXvec", "supported: CausalMaskedDiffWithDiT"),
        ("hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator", "hift:", "supported: CausalHiFTGenerator"),
        ("static_chunk_size: !ref <chunk_size> * <token_mel_ratio>", "static_chunk_size: 51", "not whole tokens of 2"),
        ("base_channels: 64", "base_channels: 60", "cannot be halved 3 times"),
    ],
)
def test_unsupported_values_are_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert GOLDEN_TEXT.count(old) >= 1
    assert named in refusal(tmp_path, GOLDEN_TEXT.replace(old, new))


@pytest.mark.parametrize(
    "text",
    ["", "- 1\n- 2\n", "just text", "a: [1, 2", "\x00\x01", "a: " + "[" * 1000 + "]" * 1000, "? [a, b]\n: {c: 1}"],
)
def test_files_that_are_something_else(tmp_path: Path, text: str) -> None:
    assert str(tmp_path) in refusal(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "cosyvoice3.yaml").write_bytes(os.urandom(200) + b"\xff\xfe\x00")
    with pytest.raises(CheckpointError):
        read_hyperparameters(tmp_path / "cosyvoice3.yaml")


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    assert "bytes" in refusal(tmp_path, "#" * (MAX_BYTES + 1))


def test_the_tests_own_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "cosyvoice3.yaml").write_text(yaml_text(Sizes(dim=96, heads=3, head_dim=32)))
    flow = read_hyperparameters(tmp_path / "cosyvoice3.yaml").flow
    assert (flow.dim, flow.heads, flow.head_dim, flow.n_mels) == (96, 3, 32, 20)
