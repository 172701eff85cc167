"""The case list of the native kernels: shapes, dtypes and awkward values. Tests, sanitizers and benchmarks all read it.

A case says what is in it and is made from its seed: `make_weights`, `make_cache`, `head_input`, `history` return the
same arrays at every call. What must come out is stated by tests/csrc/reference.py.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_sdk.kv_cache import rope_tables
from tests.csrc.reference import (
    Cache,
    Code,
    DType,
    Layer,
    Packed,
    Sampling,
    Shape,
    Weights,
    quantize,
    random_matrix,
)

Array = np.ndarray[Any, Any]

ROPE_THETA = 1e6
GUARD = 64  # bytes before and after every array that a kernel gets; a test fills and checks them


@dataclass(frozen=True)
class Format:
    """How one matrix is stored."""

    dtype: DType
    block: int = 0
    scale_dtype: DType = DType.F32

    def __str__(self) -> str:
        scale = "h" if self.scale_dtype == DType.F16 else ""
        return self.dtype.name.lower() + (f"b{self.block}{scale}" if self.block else "")


F32, F16 = Format(DType.F32), Format(DType.F16)
I8_32, I8_128 = Format(DType.I8, 32, DType.F16), Format(DType.I8, 128)
I8_ROW = Format(DType.I8, 1024)  # one block holds every row of the small cases: a scale per channel
I4_32, I4_128 = Format(DType.I4, 32), Format(DType.I4, 128, DType.F16)
I4_32_HALF, I4_128_FLOAT = Format(DType.I4, 32, DType.F16), Format(DType.I4, 128)
I8_96 = Format(DType.I8, 96)  # no power of two
MIXED = (F32, I8_32, I4_32, F16, I4_128, I8_ROW, I4_32_HALF, I8_96, I4_128_FLOAT, I8_128, F16)


GREEDY = Sampling()
DRAWN = Sampling(do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=3, turn=3, step=11)
PENALIZED = Sampling(repetition_penalty=1.2)


@dataclass(frozen=True)
class Case:
    """A speech head, its cache, and a conversation of some prefills followed by groups."""

    name: str
    shape: Shape
    formats: tuple[Format, ...] = (F32,)  # of the matrices in the order they are made, over and over
    cache: DType = DType.F32
    spare: int = 3  # cache positions that stay empty at the end
    prefill: tuple[int, ...] = (2,)  # backbone positions of each prefill call
    groups: int = 2
    sampling: Sampling = GREEDY
    seen_share: float = 0.0  # of all ids, in the history before the first group
    ffn_gain: float = 1.0  # of gate and up
    ties: bool = False  # every logit occurs twice, codes / 2 apart
    logit_gain: float = 4.0
    input_value: float = 0.0  # put into the head input of the last group if not 0
    nan_weight: bool = False  # one NaN in the final norm
    last_id: int | None = None  # the id before the first group; None: BOS
    error: Code = Code.OK  # of the last group
    overfull: bool = False  # one group more than the cache takes is tried after the last

    def __str__(self) -> str:
        return self.name

    @property
    def capacity(self) -> int:
        return (sum(self.prefill) + self.groups) * self.shape.group_size + self.spare

    @property
    def first_id(self) -> int:
        return self.shape.bos if self.last_id is None else self.last_id


@dataclass(frozen=True)
class PickCase:
    """One pick from given logits."""

    name: str
    logits: Array
    seen: Array
    sampling: Sampling
    number: float

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class GroupCase:
    """Token grouping: `count` groups of ids, with or without text rows; rows of the tower for the encoder's side."""

    name: str
    table: Format
    codes: int
    width: int
    count: int
    group_size: int
    text: bool = False
    bad_id: int | None = None  # stands somewhere in the ids
    rows: int = 7  # of the encoder's side

    def __str__(self) -> str:
        return self.name


def generator(name: str, what: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name}/{what}".encode()))


# -- what a case holds


def make_weights(case: Case) -> Weights:
    s, rng = case.shape, generator(case.name, "weights")
    made = 0

    def matrix(rows: int, cols: int, gain: float = 1.0, tied: bool = False) -> Packed:
        nonlocal made
        f = case.formats[made % len(case.formats)]
        made += 1
        values = random_matrix(rng, rows, cols, gain)
        if tied:
            values[rows // 2 : rows // 2 * 2] = values[: rows // 2]
        return quantize(values, f.dtype, f.block, f.scale_dtype)

    def norm(size: int) -> Array:
        return (1 + 0.2 * rng.standard_normal(size)).astype(np.float32)

    def layer() -> Layer:
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        return Layer(
            norm(s.width), norm(s.width), norm(s.head_dim), norm(s.head_dim),
            matrix(q, s.width), matrix(kv, s.width), matrix(kv, s.width), matrix(s.width, q),
            matrix(s.intermediate, s.width, case.ffn_gain), matrix(s.intermediate, s.width, case.ffn_gain),
            matrix(s.width, s.intermediate),
        )  # fmt: skip

    weights = Weights(
        matrix(s.group_size * s.width, s.hidden),
        (0.1 * rng.standard_normal(s.group_size * s.width)).astype(np.float32),
        matrix(s.codes, s.width, np.sqrt(s.width)),
        matrix(s.codes, s.width, case.logit_gain, tied=case.ties),
        norm(s.width),
        tuple(layer() for _ in range(s.layers)),
    )
    if case.nan_weight:
        weights.final_norm[s.width // 2] = np.nan
    return weights


def make_cache(case: Case) -> Cache:
    return Cache.empty(case.shape, case.cache, rope_tables(case.shape.head_dim, ROPE_THETA, case.capacity))


def prefill_input(case: Case, call: int) -> Array:
    """Head input of one prefill call, float32 [count, hidden]."""
    return _head_input(case, f"prefill {call}", case.prefill[call])


def group_input(case: Case, group: int) -> Array:
    """Head input of one group, float32 [hidden]."""
    x: Array = _head_input(case, f"group {group}", 1)[0]
    if case.input_value != 0 and group == case.groups - 1:
        x[len(x) // 2] = case.input_value
    return x


def _head_input(case: Case, what: str, count: int) -> Array:
    return generator(case.name, what).standard_normal((count, case.shape.hidden)).astype(np.float32)


def history(case: Case) -> Array:
    """uint8 [codes]: nonzero where the repetition penalty acts before the first group."""
    return (generator(case.name, "history").random(case.shape.codes) < case.seen_share).astype(np.uint8)


def group_tokens_arrays(case: GroupCase) -> tuple[Packed, Array, Array | None, Array]:
    """table, ids int64 [count, G], text float32 [count, width] or None, rows float32 [rows, width]."""
    rng = generator(case.name, "group")
    table = quantize(
        random_matrix(rng, case.codes, case.width), case.table.dtype, case.table.block, case.table.scale_dtype
    )
    ids = rng.integers(0, case.codes, (case.count, case.group_size))
    ids.flat[0], ids.flat[-1] = case.codes - 1, 0
    if case.bad_id is not None:
        ids.flat[ids.size // 2] = case.bad_id
    text = rng.standard_normal((case.count, case.width)).astype(np.float32) if case.text else None
    return table, ids, text, rng.standard_normal((case.rows, case.width)).astype(np.float32)


# -- the lists

#               G  hidden width layers heads kv dim  ffn codes bos
SMALL = Shape(5, 48, 64, 2, 4, 2, 16, 96, 83, 80)
ONE = Shape(1, 32, 32, 1, 1, 1, 8, 32, 17, 0)
ODD = Shape(3, 50, 44, 2, 3, 1, 10, 70, 61, 60)  # nothing is a multiple of 8; head_dim 10 lies in a cache of 16
WIDE_GROUP = Shape(7, 40, 72, 1, 8, 2, 12, 100, 150, 149)
LONG_HEAD = Shape(5, 64, 160, 1, 4, 4, 128, 200, 301, 300)
MANY_TO_ONE = Shape(5, 40, 96, 2, 6, 1, 24, 130, 90, 3)


def _heads() -> list[Case]:
    plain = [
        Case("small", SMALL, sampling=PENALIZED, seen_share=0.1),
        Case("one", ONE, prefill=(1, 3), groups=4),
        Case("odd", ODD, sampling=PENALIZED, seen_share=0.9),
        Case("wide group", WIDE_GROUP, groups=3, sampling=DRAWN, seen_share=0.3),
        Case("long head", LONG_HEAD, sampling=DRAWN, prefill=(5,)),
        Case("many to one", MANY_TO_ONE, sampling=PENALIZED, seen_share=0.5),
        Case("no prefill", SMALL, prefill=(), groups=3),
        Case("long prefill", SMALL, prefill=(37, 1, 9), groups=1),
        Case("long prefill, half", SMALL, prefill=(37, 1, 9), groups=1, cache=DType.F16),
        Case("long prefill, int8", SMALL, prefill=(29, 1, 9), groups=1, cache=DType.I8),
        Case("long prefill, odd", ODD, prefill=(50, 3), groups=1),
        Case("long prefill, many to one", MANY_TO_ONE, prefill=(30,), groups=1),
        Case("long cache", replace(SMALL, layers=1), prefill=(90,), groups=1, cache=DType.I8),
    ]
    formats = [
        Case(f"weights {f}", shape, formats=(f,), sampling=PENALIZED, seen_share=0.1)
        for f in (F16, I8_32, I8_128, I8_ROW, I8_96, I4_32, I4_32_HALF, I4_128, I4_128_FLOAT)
        for shape in (SMALL,)
    ]
    mixed = [
        Case(
            f"mixed {name} cache {cache.name.lower()}",
            shape,
            formats=MIXED,
            cache=cache,
            sampling=DRAWN,
            seen_share=0.2,
        )
        for name, shape in (("small", SMALL), ("odd", ODD), ("wide group", WIDE_GROUP), ("many to one", MANY_TO_ONE))
        for cache in (DType.F32, DType.F16, DType.I8)
    ]
    sampling = [
        Case("temperature", SMALL, sampling=Sampling(True, temperature=1.7, seed=2**63 + 5, step=1)),
        Case("top k", SMALL, sampling=Sampling(True, top_k=5, seed=1, turn=9)),
        Case("top k of all", SMALL, sampling=Sampling(True, top_k=1000, seed=1)),
        Case("top p", SMALL, sampling=Sampling(True, top_p=0.5, seed=2)),
        Case("top p of nothing", SMALL, sampling=Sampling(True, top_p=0.0, seed=3)),
        Case("top k and p", SMALL, sampling=Sampling(True, 0.7, 0.8, 20, 1.3, seed=4), seen_share=1.0),
        Case("ties", replace(SMALL, codes=84), ties=True),
        Case("ties drawn", replace(SMALL, codes=84), ties=True, sampling=Sampling(True, top_p=0.6, top_k=9, seed=5)),
    ]
    awkward = [
        # silu(gate) * up reaches 1e7: past fp16's 65504, and in int8 blocks dwarfed by their largest value
        Case("huge activations", SMALL, ffn_gain=2e3),
        Case("huge activations, mixed", SMALL, formats=MIXED, ffn_gain=2e3, cache=DType.F16),
        Case("full", SMALL, spare=0, overfull=True),
        Case("almost full", SMALL, spare=4, overfull=True, cache=DType.I8),
        Case("full from prefill", SMALL, prefill=(3,), groups=0, spare=0, overfull=True),
        Case("nan input", SMALL, input_value=np.nan, error=Code.NOT_FINITE),
        Case("inf input", SMALL, input_value=-np.inf, error=Code.NOT_FINITE, formats=(I8_32,), cache=DType.I8),
        Case("nan weight", SMALL, nan_weight=True, groups=1, error=Code.NOT_FINITE),
        Case("bad last id", SMALL, groups=1, last_id=83, error=Code.INVALID_ARGUMENT),
        Case("negative last id", SMALL, groups=1, last_id=-1, error=Code.INVALID_ARGUMENT),
        Case("no choice", SMALL, groups=1, sampling=Sampling(True, temperature=1e-45), error=Code.NO_CHOICE),
    ]
    return plain + formats + mixed + sampling + awkward


HEADS: tuple[Case, ...] = tuple(_heads())


def _picks() -> list[PickCase]:
    found: list[PickCase] = []

    def add(name: str, logits: Any, sampling: Sampling, seen: Any = 0, number: float = 0.0) -> None:
        row = np.asarray(logits, np.float32)
        found.append(PickCase(name, row, np.broadcast_to(np.uint8(seen), row.shape).copy(), sampling, number))

    rng = generator("picks", "logits")
    add("one code", [0.5], Sampling(True), number=0.9)
    add("greedy ties", [1, 3, 3, 2, 3], Sampling())
    add("all equal", np.zeros(700), Sampling(True, top_p=0.5), number=0.999)
    add("all equal top k", np.zeros(70), Sampling(True, top_k=3), number=0.999)
    add("penalty moves the best", [3.0, 2.9, -1], Sampling(repetition_penalty=1.2), seen=[1, 0, 1])
    add("penalty of negatives", [-3.0, -3.1, -3.2], Sampling(repetition_penalty=1.5), seen=[1, 0, 0])
    add("minus zero", [-0.0, 0.0, -1.0], Sampling())
    add("minus zero drawn", [-0.0, 0.0, -1.0], Sampling(True, top_k=1), number=0.7)
    add("huge", [1e30, 3e38, -3e38], Sampling(True), number=0.5)
    add("overflow", [3e38, 1], Sampling(True, temperature=0.1))
    add("lowest", np.full(40, -3e38), Sampling(True, top_p=0.3), number=0.5)
    add("some lost to overflow", [1.0, -3e38, 2.0], Sampling(True, temperature=0.1), number=0.99)
    for bad in (np.nan, np.inf, -np.inf):
        add(f"{bad}", [1, 2, bad, 0], Sampling())
    settings = (
        Sampling(True),
        Sampling(True, top_k=1),
        Sampling(True, top_k=40),
        Sampling(True, top_p=0.9),
        Sampling(True, top_p=1e-6),
        Sampling(True, 0.8, 0.9, 50, 1.2),
        Sampling(True, 2.5, 0.99, 0, 1.1),
    )
    for codes, spread in ((5, 1.0), (257, 3.0), (3000, 1.0), (6565, 5.0)):
        for i, sampling in enumerate(settings):
            logits = (rng.standard_normal(codes) * spread).astype(np.float32)
            if i % 2:
                logits = np.round(logits, 1)  # many ties
            seen = rng.random(codes) < 0.2
            for number in (0.0, float(rng.integers(2**24)) * 2.0**-24, 1 - 2.0**-24):
                add(f"{codes} codes, settings {i}, number {number:.4f}", logits, sampling, seen, number)
    return found


PICKS: tuple[PickCase, ...] = tuple(_picks())

GROUPS: tuple[GroupCase, ...] = (
    GroupCase("f32", F32, 30, 24, 3, 5),
    GroupCase("f32 with text", F32, 30, 24, 3, 5, text=True),
    GroupCase("f16, odd width", F16, 9, 7, 2, 1, text=True),
    GroupCase("i8 per row", I8_ROW, 11, 70, 2, 3, rows=0),
    GroupCase("i8 blocks, half scales", I8_32, 50, 100, 4, 7, text=True, rows=14),
    GroupCase("wide", F16, 12, 1030, 1, 5, rows=1),
    GroupCase("id too large", I8_128, 20, 130, 2, 5, bad_id=20),
    GroupCase("id negative", F32, 20, 16, 2, 5, text=True, bad_id=-1),
)
