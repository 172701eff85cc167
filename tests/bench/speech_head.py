"""The speech head at the released size, random weights: one group beside the bandwidth limit, and the fused op beside
ONNX Runtime's own graph (MatMulNBits, GroupQueryAttention), in one run.

    python -m tests.bench.speech_head FOLDER [--precision int8 int4] [--threads 2 1] [--positions 100 2000 10000]
    python -m tests.bench.speech_head FOLDER --prefill [--precision fp32 int8] [--threads 2] [--positions 100 500 1024]

With --prefill: so many positions of the backbone (G times as many of the head) brought in, of two layers of that size
and of the tests' random bundle.

FOLDER keeps the checkpoint and the bundles (1.5 GB) for the next run. The plain graph has no int8 cache on the CPU: its
keys and values are float32, four times the bytes. Times of one line are of one run, alternating; the machine's other
load moves them together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.bench import read_bandwidth
from edge_sdk.bundle import Bundle
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import PRESETS, EncoderSpec, StackSpec, write_language_checkpoint
from edge_sdk.runtimes import ort
from edge_sdk.sampling import Sampling
from edge_sdk.speech_head import PlainSpeechHead, SpeechHead, open_speech_head
from tests.bundles import RANDOM

REPEATS, PREFILL_REPEATS = 9, 4


class Fixed:
    """Greedy, and always the same ids: the time of a group does not depend on them."""

    sampling, seed, turn, step = Sampling(repetition_penalty=1.2), 0, 0, 0

    def __init__(self, codes: int, size: int) -> None:
        self.seen, self.forced = np.zeros(codes, np.uint8), np.zeros(size, np.int64)

    def pick(self, logits: Any, sub_step: int) -> int:
        return int(logits.argmax())

    def took(self, ids: Any, logits: Any) -> None:
        """Nothing is kept."""


def checkpoint(folder: Path, layers: int | None) -> Path:
    """The 8B's head and widths; a backbone and an encoder as small as may be. layers: the head's, None for all."""
    path = folder / ("head-checkpoint" if layers is None else f"head-checkpoint-{layers}")
    if not path.exists():
        spec = PRESETS["8b"].language
        assert spec is not None
        text = StackSpec(hidden=4096, layers=1, heads=2, kv_heads=1, head_dim=64, intermediate=64, rope_theta=5e6)
        small = PRESETS["tiny"].language
        assert small is not None
        encoder = EncoderSpec(d_model=48, layers=1, heads=4, ffn=96)
        stack = spec.head if layers is None else dataclasses.replace(spec.head, layers=layers)
        head = dataclasses.replace(small, text=text, encoder=encoder, head=stack)
        write_language_checkpoint(path, head, 1, dtype="bfloat16")
    return path


def bundle(folder: Path, precision: str, layers: int | None = None) -> Path:
    path = folder / (f"head-{precision}.bundle" if layers is None else f"head-{precision}-{layers}.bundle")
    return path if path.exists() else export_bundle(checkpoint(folder, layers), None, path, ExportOptions(precision))


def make(opened: Bundle, threads: int, capacity: int, *, fused: bool) -> SpeechHead:
    model = opened.manifest.model
    assert model
    assert model.speech_head
    runtime = ort.open_runtime(opened, device_id=0, threads=threads)
    if fused:
        return open_speech_head(runtime, model, model.speech_head, capacity)
    return PlainSpeechHead(runtime, model, model.speech_head, capacity)


def group_s(head: SpeechHead, positions: int, picker: Fixed, row: Any) -> float:
    head.cache.length = positions  # what the cache holds does not matter for the time
    began = time.perf_counter()
    head.step(row, picker)
    return time.perf_counter() - began


def measure(opened: Bundle, threads: int, positions: int) -> dict[str, Any]:
    model = opened.manifest.model
    assert model
    size = model.group_size
    capacity = positions // size + 4
    heads = {name: make(opened, threads, capacity, fused=name == "fused") for name in ("fused", "plain")}
    picker = Fixed(model.speech_ids.codebook_size, size)
    row = np.random.default_rng(0).standard_normal((1, model.backbone.hidden_size)).astype(np.float32)
    for head in heads.values():
        group_s(head, positions, picker, row)
    times: dict[str, list[float]] = {name: [] for name in heads}
    bandwidth = 0.0
    for _ in range(REPEATS):
        for name, head in heads.items():
            times[name].append(group_s(head, positions, picker, row))
        bandwidth = max(bandwidth, read_bandwidth(threads, repeats=1))
    graphs = opened.manifest.graphs
    weights = size * graphs["speech_head"].bytes_read + graphs["speech_input"].bytes_read
    line: dict[str, Any] = {
        "precision": graphs["speech_head"].precision, "threads": threads, "positions": positions,
        "read_gb_s": round(bandwidth / 1e9, 1),
    }  # fmt: skip
    for name, head in heads.items():
        total = weights + size * positions * head.nbytes // head.cache.capacity
        best, middle = min(times[name]), float(np.median(times[name]))
        line[name] = {
            "ms": [round(1e3 * best, 1), round(1e3 * middle, 1)],
            "of_limit": round(total / best / bandwidth, 2),
        }
    line["fused_over_plain"] = round(line["fused"]["ms"][0] / line["plain"]["ms"][0], 2)
    return line


def prefill_s(head: SpeechHead, rows: Any) -> float:
    head.rewind(0, None)
    began = time.perf_counter()
    head.prefill(rows)
    return time.perf_counter() - began


def measure_prefill(opened: Bundle, threads: int, positions: int) -> dict[str, Any]:
    model = opened.manifest.model
    assert model
    heads = {name: make(opened, threads, positions + 4, fused=name == "fused") for name in ("fused", "plain")}
    rows = np.random.default_rng(0).standard_normal((positions, model.backbone.hidden_size)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(PREFILL_REPEATS):
        for name, head in heads.items():
            times[name].append(prefill_s(head, rows))
    line: dict[str, Any] = {
        "bundle": opened.path.name, "precision": opened.manifest.graphs["speech_head"].precision, "threads": threads,
        "prefill_positions": positions,
    }  # fmt: skip
    for name, measured in times.items():
        line[name] = {"ms": [round(1e3 * min(measured), 1), round(1e3 * float(np.median(measured)), 1)]}
    line["fused_over_plain"] = round(line["fused"]["ms"][0] / line["plain"]["ms"][0], 2)
    return line


def print_prefills(args: argparse.Namespace) -> None:
    paths = [RANDOM, *(bundle(args.folder, precision, layers=2) for precision in args.precision)]
    for path in paths:
        with Bundle.open(path) as opened:
            for threads in args.threads:
                for positions in args.positions:
                    print(json.dumps(measure_prefill(opened, threads, positions)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", nargs="+", default=["int8", "int4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--positions", nargs="+", type=int, default=[100, 2000, 10000])
    parser.add_argument("--prefill", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.prefill:
        print_prefills(args)
        return
    for precision in args.precision:
        with Bundle.open(bundle(args.folder, precision)) as opened:
            for threads in args.threads:
                for positions in args.positions:
                    print(json.dumps(measure(opened, threads, positions)), flush=True)


if __name__ == "__main__":
    main()
