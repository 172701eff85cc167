"""`verify --against` for the vocoder: a bundle on this machine beside the plain reference on the vocoder folder.

Every stage is given the reference's input, so that one early difference does not hide what comes after it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.call_state import CallState
from edge_sdk.config import VocoderConfig
from edge_sdk.errors import BundleError, ExportError
from edge_sdk.excitation import noise_generator, uniform_noise
from edge_sdk.export.parity import BOUNDS as LANGUAGE_BOUNDS
from edge_sdk.export.parity import COSTS, Bound, Stage
from edge_sdk.export.quantized_reference import QuantizedFlow, QuantizedWaveform
from edge_sdk.export.recipe import manifest_policy
from edge_sdk.export.reference.flow import FlowReference, chunk_mask, time_grid
from edge_sdk.export.reference.waveform import WaveformReference
from edge_sdk.export.vocoder_checkpoint import read_vocoder
from edge_sdk.flow import Flow, FlowSettings, TokenConditions, chunk_tokens
from edge_sdk.flow_stream import FlowStream
from edge_sdk.manifest import FLOW_GRAPHS, WAVEFORM_GRAPHS
from edge_sdk.runtime import Array
from edge_sdk.waveform import Waveform, WaveformStream

SEED = 20261
# Largest difference of a stage given the reference's input, for float32 weights. Measured, tiny and full size:
# mu 3e-6, velocity 5e-5, mel 2e-5, f0 2e-12 Hz, samples 3e-5.
BOUNDS = {"mu": 1e-4, "velocity": 1e-3, "mel": 2e-3, "f0": 1e-3, "samples": 1e-3}


def compare_vocoder(bundle: Bundle, folder: str | os.PathLike[str]) -> list[Stage]:
    """Run both over a block and a bit of random tokens, and compare what every graph gives.

    Raises:
        CheckpointError: the folder does not fit its own configuration.
        ExportError: the bundle was not made from such a folder.
        BundleError: the bundle has no vocoder.
    """
    config = bundle.manifest.vocoder
    if config is None:
        raise BundleError(f"bundle '{bundle.path}' has no vocoder to compare with '{folder}'")
    source = read_vocoder(folder, steps=config.flow.steps, noise_frames=config.flow.noise_frames)
    if (source.flow, source.waveform) != (config.flow, config.waveform):
        raise ExportError(f"bundle '{bundle.path}' was not made from '{folder}': their sizes differ")
    comparison = _Comparison(bundle, config)
    reference = FlowReference(source.flow, source.flow_weights.read)
    mel, stages = comparison.flow(reference)
    precision = bundle.manifest.narrowest(FLOW_GRAPHS)
    policy = manifest_policy(bundle.manifest.recipe, f"bundle '{bundle.path}'")
    if precision != "fp32":
        _, same = comparison.flow(QuantizedFlow(source.flow, source.flow_weights.read, policy))
        stages = [
            *(_judge(stage, LANGUAGE_BOUNDS[precision].after(config.flow.depth), "same") for stage in same),
            *(_judge(stage, COSTS[precision], "fp32") for stage in stages),
        ]
    full = WaveformReference(source.waveform, source.waveform_weights.read)
    precision = bundle.manifest.narrowest(WAVEFORM_GRAPHS)
    if precision == "fp32":
        return [*stages, *comparison.waveform(mel, full, full)]
    same_weights = QuantizedWaveform(source.waveform, source.waveform_weights.read, policy)
    return [
        *stages,
        # Weights are narrow there and activations are not: what float32 weights are held to holds.
        *(dataclasses.replace(s, against="same") for s in comparison.waveform(mel, same_weights, same_weights)),
        *(_judge(stage, COSTS[precision], "fp32") for stage in comparison.waveform(mel, full, same_weights)),
    ]


def _judge(stage: Stage, bound: Bound, against: str) -> Stage:
    """A stage of a flow that is narrower than float32, by the bounds of such weights (parity.py)."""
    return dataclasses.replace(stage, ok=stage.relative <= bound.relative, against=against)


class _Comparison:
    def __init__(self, bundle: Bundle, config: VocoderConfig) -> None:
        rng = np.random.default_rng(SEED)
        self._config = config.flow
        tokens = chunk_tokens(config.flow) + config.flow.lookahead_tokens
        self._ids = rng.integers(0, config.flow.codebook_size, tokens)
        self._steps = min(config.flow.steps)
        speaker = rng.standard_normal(config.flow.speaker_dim).astype(np.float32)
        self._settings = FlowSettings(speaker, self._steps, config.flow.cfg_rate, context_frames=None)
        runtime = bundle.runtime()
        self._flow = Flow(runtime, config.flow, bundle.read_array(bundle.manifest.noise))
        self._waveform = Waveform(runtime, config.waveform)

    def flow(self, reference: FlowReference) -> tuple[Array, list[Stage]]:
        """The reference's streaming mel, and the flow's stages."""
        found = TokenConditions(self._flow, self._settings.speaker).next(self._ids, final=True)
        expected = reference.tokens(self._ids)
        stages = [_stage("flow: mu", "mu", found["mu"], expected["lookahead_out"])]

        speaker, noise = reference.speaker(self._settings.speaker), self._flow.noise[: len(found["condition"])]
        x = noise.copy()
        rows = reference.estimate(x, expected["mu"], speaker, float(time_grid(self._steps)[0][0]))["velocity"]
        velocity = rows[: self._config.rows].transpose(1, 0, 2)
        stages.append(_stage("flow: velocity", "velocity", self._velocity(found["condition"], x), velocity))

        def sampled(mask: Array | None) -> Array:
            rate = self._settings.cfg_rate
            path = reference.sample(expected["mu"], speaker, noise, steps=self._steps, cfg_rate=rate, mask=mask)
            return path[-1]["x_out"]

        whole, streaming = sampled(None), sampled(chunk_mask(len(x), self._config.chunk_frames))
        stream = FlowStream(self._flow, self._settings)
        pieces = np.concatenate([stream.push(self._ids), stream.finish()])
        stages.append(_stage("flow: mel, whole", "mel", self._flow.whole(self._ids, self._settings), whole))
        stages.append(_stage("flow: mel, streaming", "mel", pieces, streaming))
        return streaming, stages

    def _velocity(self, condition: Array, x: Array) -> Array:
        call = self._flow.whole_call(condition)
        call.set("x", x)
        call.set("step", np.array(self._flow.step_rows(self._steps)[0]))
        self._flow.guide(call, self._settings.cfg_rate)
        call.fetch("velocity")
        return call.run()["velocity"]

    def waveform(self, mel: Array, reference: WaveformReference, excited: WaveformReference) -> Iterator[Stage]:
        """The waveform part's stages. `excited` has the bundle's f0: samples are compared under its excitation, since
        what another f0 differs by is added up in the phase."""
        config = self._waveform.config
        expected = reference.f0(mel.T)
        found = self._f0(mel)
        yield _stage("waveform: f0 [Hz]", "f0", found, expected)
        harmonics = config.harmonics + 1
        noise = uniform_noise(noise_generator(config), len(mel) * config.samples_per_frame * harmonics)
        f0 = expected if excited is reference else excited.f0(mel.T)
        source = excited.harmonics(f0, noise.reshape(-1, harmonics))["source"]
        stream = WaveformStream(self._waveform, self._config.chunk_frames)
        samples = np.concatenate([stream.push(mel), stream.finish()])
        yield _stage("waveform: samples", "samples", samples, reference.trunk(mel.T, source)["wav"])

    def _f0(self, mel: Array) -> Array:
        engine = self._waveform.f0_engine
        call = engine.call()
        CallState(self._waveform.runtime, engine).bind(call)
        call.fetch("f0")
        call.set("mel", np.pad(mel, ((0, self._waveform.config.f0_lookahead_frames), (0, 0))))
        return call.run()["f0"]


def _stage(name: str, kind: str, found: Array, expected: Array) -> Stage:
    if found.shape != expected.shape:
        return Stage(name, float("inf"), float("inf"), None, ok=False)
    difference = found.astype(np.float64) - expected
    largest = float(np.abs(difference).max())
    relative = float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected)), 1e-30))
    return Stage(name, largest, relative, None, ok=largest <= BOUNDS[kind])
