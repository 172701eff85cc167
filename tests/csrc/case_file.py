"""The case list and what must come out of it, as one file for tests/csrc/driver.cc.

    python -m tests.csrc.case_file FILE

Integers are int64, numbers float64, texts and arrays their length in bytes (int64) and the bytes; all little endian.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tests import tolerances
from tests.csrc import cases, reference
from tests.csrc.conversation import Call, bound, conversation
from tests.csrc.reference import Array, Cache, Code, Packed, RefusedError, Sampling, Shape, Weights

SHAPE = ("group_size", "hidden", "width", "layers", "heads", "kv_heads", "head_dim", "cache_head_dim", "intermediate")
NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Writer:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def integers(self, *values: int) -> None:
        for value in values:
            self._stream.write(struct.pack("<Q", int(value) % 2**64))

    def numbers(self, *values: float) -> None:
        self._stream.write(struct.pack(f"<{len(values)}d", *values))

    def data(self, data: bytes) -> None:
        self.integers(len(data))
        self._stream.write(data)

    def text(self, text: str) -> None:
        self.data(text.encode())

    def array(self, array: Array | None) -> None:
        self.data(b"" if array is None else np.ascontiguousarray(array).tobytes())

    def matrix(self, packed: Packed) -> None:
        self.integers(packed.dtype, packed.scale_dtype, packed.rows, packed.cols, packed.block)
        self.array(packed.data)
        self.array(packed.scales)

    def sampling(self, s: Sampling) -> None:
        self.integers(s.do_sample, s.top_k, s.seed, s.turn, s.step)
        self.numbers(s.temperature, s.top_p, s.repetition_penalty)


def write(path: Path) -> None:
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.numbers(tolerances.CPU_KERNEL_RELATIVE)
        writer.integers(len(cases.HEADS), len(cases.PICKS), len(cases.GROUPS))
        for case in cases.HEADS:
            _head(writer, case)
        for pick in cases.PICKS:
            _pick(writer, pick)
        for group in cases.GROUPS:
            _group(writer, group)


def _head(writer: Writer, case: cases.Case) -> None:
    writer.text(case.name)
    _weights(writer, case.shape, cases.make_weights(case))
    _cache(writer, cases.make_cache(case))
    calls = conversation(case).calls
    writer.integers(len(calls))
    for call in calls:
        _call(writer, case, call)


def _weights(writer: Writer, shape: Shape, weights: Weights) -> None:
    writer.integers(*(getattr(shape, name) for name in SHAPE), shape.codes, shape.bos)
    writer.numbers(shape.eps)
    for packed in (weights.input, weights.input_table, weights.output_table):
        writer.matrix(packed)
    writer.array(weights.input_bias)
    writer.array(weights.final_norm)
    for layer in weights.layers:
        for name in NORMS:
            writer.array(getattr(layer, name))
        for name in MATRICES:
            writer.matrix(getattr(layer, name))


def _cache(writer: Writer, cache: Cache) -> None:
    writer.integers(cache.dtype, cache.capacity)
    writer.array(cache.rope_cos)
    writer.array(cache.rope_sin)


def _call(writer: Writer, case: cases.Case, call: Call) -> None:
    writer.integers(call.is_group, call.length, call.last_id, call.code)
    writer.numbers(bound(case, call))
    writer.array(call.head_input)
    writer.array(call.seen)
    writer.sampling(call.sampling)
    writer.array(np.array(call.ids, np.int64))
    writer.array(call.logits)


def _pick(writer: Writer, case: cases.PickCase) -> None:
    writer.text(case.name)
    writer.array(case.logits)
    writer.array(case.seen)
    writer.sampling(case.sampling)
    writer.numbers(case.number)
    try:
        with np.errstate(all="ignore"):
            writer.integers(Code.OK, reference.pick(case.logits, case.seen, case.sampling, case.number))
    except RefusedError as refused:
        writer.integers(refused.code, 0)


def _group(writer: Writer, case: cases.GroupCase) -> None:
    table, ids, text, rows = cases.group_tokens_arrays(case)
    writer.text(case.name)
    writer.matrix(table)
    writer.integers(case.count, case.group_size, case.bad_id is not None, case.rows)
    for array in (ids, text, rows):
        writer.array(array)
    writer.array(reference.group_tokens(table, ids, text).astype(np.float32))
    writer.array(reference.group_rows(rows, case.group_size).astype(np.float32))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
