"""`verify --against`, and bundles of many shapes against a decoder written here on the plain reference."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_sdk.audio import load_audio
from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.clip import ClipEncoder
from edge_sdk.config import ModelConfig
from edge_sdk.encoder import Encoder
from edge_sdk.errors import BundleError, CheckpointError, ExportError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.model_config import read_language_config
from edge_sdk.export.parity import Stage, compare_language
from edge_sdk.export.pipeline import export_bundle
from edge_sdk.export.random_checkpoint import EncoderSpec, MoESpec, SpeechIdSpec, StackSpec
from edge_sdk.export.reference.language import LanguageReference
from edge_sdk.generation import GenerationConfig
from edge_sdk.manifest import MANIFEST_NAME, FileEntry, manifest_bytes, parse_manifest
from edge_sdk.mel import log_mel
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, Clip, Message, Template
from edge_sdk.selftest import question
from edge_sdk.tokenizer import Tokenizer
from tests import speech_goldens as goldens
from tests import tiny, tolerances

STAGES = ["encoder rows", "backbone states", "text scores", "speech scores"]


def failing(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages if not stage.ok]


# -- the golden bundle


def test_the_golden_bundle_passes(speech_bundle: Bundle) -> None:
    stages = compare_language(speech_bundle, goldens.CHECKPOINT)
    assert [stage.name for stage in stages] == STAGES
    assert not failing(stages)
    assert all(stage.relative < tolerances.PARITY_RELATIVE for stage in stages)
    assert [stage.agreement for stage in stages] == [None, None, 1.0, 1.0]
    assert set(stages[0].to_json()) == {"stage", "against", "max_abs", "relative", "agreement", "ok"}


def spoil(folder: Path, graph: str, name: str, factor: float) -> None:
    """Scale one weight of a graph, its hash put right."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if name in t.name and t.external_data)
    place = {e.key: e.value for e in tensor.external_data}
    data = np.fromfile(folder / place["location"], np.uint8)
    begin = int(place["offset"])
    data[begin : begin + int(place["length"])].view(np.float32)[:] *= np.float32(factor)
    data.tofile(folder / place["location"])
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    entry = FileEntry(hashlib.sha256(data.tobytes()).hexdigest(), len(data))
    changed = dataclasses.replace(manifest, files={**manifest.files, place["location"]: entry})
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(changed))


@pytest.mark.parametrize(
    ("graph", "weight", "expected"),
    [
        ("encoder", "layers.1.fc1", ["encoder rows"]),
        ("encoder", "continual_output_matching", ["encoder rows"]),
        ("backbone", "layers.0.self_attn.v_proj", STAGES[1:]),
        ("backbone", "codebook*audio_tower", STAGES[1:]),
        ("backbone", "lm_head", ["text scores"]),
        ("speech_input", "pre_matching", ["speech scores"]),
        ("speech_head", "layers.1.mlp.up_proj", ["speech scores"]),
        ("speech_head", "codebook*input_matching", ["speech scores"]),
        ("speech_head", "codebook*output_matching", ["speech scores"]),
    ],
)
def test_a_wrong_weight_shows_in_its_stage(
    speech_bundle_path: Path, tmp_path: Path, graph: str, weight: str, expected: list[str]
) -> None:
    """One weight off by a tenth of a percent; the stages before it stay good."""
    folder = Path(shutil.copytree(speech_bundle_path, tmp_path / "wrong.bundle"))
    spoil(folder, graph, weight, 1.001)
    with Bundle.open(folder) as bundle:
        assert failing(compare_language(bundle, goldens.CHECKPOINT)) == expected


# -- another checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and its bundle beside it."""
    folder = tmp_path_factory.mktemp("small")
    export_bundle(tiny.write(folder / "checkpoint"), None, folder / "small.bundle")
    return folder


def test_the_same_shapes_with_other_weights(small: Path, tmp_path: Path) -> None:
    with Bundle.open(small / "small.bundle") as bundle:
        assert not failing(compare_language(bundle, small / "checkpoint"))
        assert failing(compare_language(bundle, tiny.write(tmp_path / "other", seed=2))) == STAGES


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"group_size": 4}, "sizes and ids"),
        ({"speech": SpeechIdSpec(36, 39, 38, 37)}, "sizes and ids"),
        ({"text": dataclasses.replace(tiny.SPEC.text, rope_theta=2e4)}, "sizes and ids"),
        ({"text_tokens": 260}, "sizes and ids, tokenizer"),
    ],
)
def test_other_shapes_are_refused(small: Path, tmp_path: Path, changes: Any, difference: str) -> None:
    other = tiny.write(tmp_path / "other", **changes)
    with (
        Bundle.open(small / "small.bundle") as bundle,
        pytest.raises(ExportError, match=f"was not made from '{other}': other {difference}; name the checkpoint"),
    ):
        compare_language(bundle, other)


def test_another_template_or_tokenizer_is_refused(small: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(small / "checkpoint", tmp_path / "other"))
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + "{# #}")
    tiny.edit_json(other / "tokenizer.json", lambda t: t["added_tokens"][5].update(special=True))
    with Bundle.open(small / "small.bundle") as bundle, pytest.raises(ExportError, match="tokenizer, chat template"):
        compare_language(bundle, other)


def test_a_checkpoint_that_is_wrong_itself(small: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(small / "checkpoint", tmp_path / "other"))
    tiny.edit_tensors(other, lambda t: t.update(more=tiny.zeros("F32", 1)))
    with Bundle.open(small / "small.bundle") as bundle, pytest.raises(CheckpointError, match="not part of this model"):
        compare_language(bundle, other)


def test_a_bundle_without_a_language_half(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small / "small.bundle", tmp_path / "x.bundle"))
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(dataclasses.replace(manifest, model=None)))
    with Bundle.open(folder) as bundle, pytest.raises(BundleError, match="has only a vocoder; compare it with"):
        compare_language(bundle, small / "checkpoint")


# -- other shapes of the family


def stack(base: StackSpec, **changes: Any) -> StackSpec:
    return dataclasses.replace(base, **changes)


TEXT, HEAD, ENCODER = tiny.SPEC.text, tiny.SPEC.head, tiny.SPEC.encoder
assert HEAD
EXPERTS = MoESpec(experts=5, experts_per_token=2, intermediate=14)

SHAPES: dict[str, dict[str, Any]] = {
    "group 1": {"group_size": 1},
    "group 3, heads of 12 and 20": {
        "group_size": 3, "text": stack(TEXT, head_dim=12), "head": stack(HEAD, head_dim=20),
    },
    "group 4, odd window": {
        "group_size": 4, "encoder": dataclasses.replace(ENCODER, n_window=37), "text": stack(TEXT, head_dim=16),
    },
    "group 7, window of 10": {
        "group_size": 7, "encoder": dataclasses.replace(ENCODER, n_window=10), "head": stack(HEAD, head_dim=24),
    },
    "group 2, window of 1": {
        "group_size": 2, "encoder": EncoderSpec(d_model=4, layers=2, heads=2, ffn=6, n_window=1),
        "text": stack(TEXT, head_dim=20),
    },
    "80 mel bins, window of 3": {"encoder": dataclasses.replace(ENCODER, n_mels=80, n_window=3, layers=3)},
    "as many heads for keys": {
        "text": stack(TEXT, heads=3, kv_heads=3, head_dim=24), "head": stack(HEAD, heads=2, kv_heads=2, head_dim=8),
    },
    "one head for keys": {
        "text": stack(TEXT, heads=6, kv_heads=1, head_dim=2), "head": stack(HEAD, heads=4, kv_heads=1, head_dim=34),
    },
    "experts": {"text": stack(TEXT, moe=EXPERTS)},
    "experts, not normalized, some layers": {
        "text": stack(
            TEXT, layers=5, moe=dataclasses.replace(EXPERTS, normalize=False, sparse_step=2, dense_layers=(3,))
        ),
    },
    "one expert of one": {"text": stack(TEXT, moe=MoESpec(1, 1, 6)), "head": stack(HEAD, layers=3)},
    "all experts, in the head too": {
        "text": stack(TEXT, moe=MoESpec(3, 3, 10, normalize=False)), "head": stack(HEAD, moe=MoESpec(4, 1, 6)),
    },
    "add": {"features_mode": "add", "group_size": 4},
    "add, ids elsewhere": {"features_mode": "add", "speech": SpeechIdSpec(30, bos=33, eos=30, pad=32)},
    "tied": {"tied": True, "speech": SpeechIdSpec(30, bos=31, eos=33, pad=30)},
    "bfloat16": {"dtype": "bfloat16"},
    "float16 in shards, experts": {"dtype": "float16", "shards": 4, "text": stack(TEXT, moe=EXPERTS)},
    "speech ends often": {"speech_eos_gain": 2.5, "text_eos_gain": 1.6},
    "text only": {"head": None},
}  # fmt: skip
STEPS = 8


class Greedy:
    """Upstream's generation written out on whole sequences: no cache, everything computed anew at every step."""

    def __init__(self, reference: LanguageReference, penalty: float) -> None:
        self.reference, self.model, self.penalty = reference, reference.model, penalty

    def reply(self, ids: Any, audio: Any, steps: int) -> tuple[list[int], list[int]]:
        """Text ids and speech ids. `audio` replaces the rows of the placeholders."""
        model, reference = self.model, self.reference
        embedded = reference.embed_text(ids)
        rows = embedded.copy()
        rows[ids == model.text_ids.audio] = audio
        bos = [model.speech_ids.bos] * ((len(ids) - 1) * model.group_size + 1)
        picks: list[int] = []
        text: list[int] = []
        speech: list[int] = []
        active, group = False, None
        for step in range(steps):
            if step:
                row = plain = reference.embed_text(np.array(text[-1:]))
                if active and group is not None:
                    row = (plain + reference.group_speech(np.array([group]))) / 2
                embedded, rows = np.concatenate([embedded, plain]), np.concatenate([rows, row])
                active = active or text[-1] == model.text_ids.audio_bos
            hidden = reference.backbone(rows)
            new = self.group(hidden + embedded, bos, picks, speech) if model.speech_head else []
            chosen = int(reference.text_logits(hidden[-1:])[0].argmax())
            if step == 0 and model.speech_head:
                chosen = model.text_ids.audio_bos
            stop, group = chosen in model.text_ids.eos, None
            if active:
                group = new
                if model.speech_ids.eos in new:
                    group, active, chosen = [model.speech_ids.eos] * len(new), False, model.text_ids.audio_eos
                speech += group
            text.append(chosen)
            if stop:
                break
        return text, speech

    def group(self, head_input: Any, bos: list[int], picks: list[int], said: list[int]) -> list[int]:
        size, positions = self.model.group_size, self.reference.speech_positions(head_input)
        for _ in range(size):
            previous = np.array(bos + picks)
            outputs = self.reference.speech_hidden(self.reference.speech_inputs(positions[: len(previous)], previous))
            scores = self.reference.speech_logits(outputs[-1:])[0]
            for i in {*said, *picks[len(picks) - len(picks) % size :]}:
                scores[i] = scores[i] / self.penalty if scores[i] > 0 else scores[i] * self.penalty
            picks.append(int(scores.argmax()))
        return picks[-size:]


def prompt_of(bundle: Bundle, model: ModelConfig, placeholders: int) -> Any:
    tokenizer = Tokenizer(bundle.read_text(bundle.manifest.tokenizer))
    template = Template(bundle.read_text(bundle.manifest.chat_template), tokenizer, model)
    clip = Clip.of(np.zeros((placeholders, model.backbone.hidden_size), np.float32), 1.0)
    system = SYSTEM_SPEECH if model.speech_head else SYSTEM_TEXT
    return template.render([Message("system", ((system, True),)), Message("user", (clip,))]).ids


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_of_another_shape(tmp_path: Path, shape: str) -> None:
    """Every stage agrees, and a greedy reply is the one that recomputing everything at each step gives."""
    checkpoint = tiny.write(tmp_path / "checkpoint", seed=7, **SHAPES[shape])
    with Bundle.open(export_bundle(checkpoint, None, tmp_path / "x.bundle")) as bundle:
        stages = compare_language(bundle, checkpoint)
        assert not failing(stages), stages
        assert {stage.agreement for stage in stages} <= {None, 1.0}
        source = Checkpoint(checkpoint)
        config = read_language_config(source)
        model = config.model
        reference = LanguageReference(model, source.read, tied=config.tied)
        check_rows(bundle, reference)

        pcm = load_audio(question(16000)[:24_000])
        count = model.placeholder_count(len(pcm))
        rows = reference.encode(log_mel(pcm, model.mel), count)["grouped"]
        prompt = prompt_of(bundle, model, count)
        expected = Greedy(reference, penalty=1.2).reply(prompt, rows, STEPS)
        settings = GenerationConfig(max_new_tokens=STEPS, do_sample=False)
        with Chat(bundle, speech=model.speech_head is not None, generation=settings, context_tokens=256) as chat:
            reply = chat.send(pcm)
        assert (list(reply.text_ids), list(reply.speech_ids)) == expected
        assert bool(reply.speech_ids) == (model.speech_head is not None)
        if shape == "speech ends often":
            assert model.speech_ids.eos in reply.speech_ids
            assert model.text_ids.audio_eos in reply.text_ids


def check_rows(bundle: Bundle, reference: LanguageReference) -> None:
    """Clips of odd lengths: what windows and groups leave over is carried as upstream has it."""
    model = reference.model
    encoder = Encoder(bundle.runtime(), model)
    rng = np.random.default_rng(len(bundle.digest))
    for samples in (640, 641, 7520, *rng.integers(640, 60_000, 3)):
        pcm = (0.2 * rng.standard_normal(samples)).astype(np.float32)
        clip = ClipEncoder(encoder, model, "full")
        for piece in np.array_split(pcm, 3):
            clip.feed(piece)
        expected = reference.encode(log_mel(pcm, model.mel), model.placeholder_count(len(pcm)))["grouped"]
        found = clip.finish().rows
        assert tolerances.relative(found, expected) < tolerances.ROWS_RELATIVE, (samples, found.shape)
