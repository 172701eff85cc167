"""The CPU kernels over the whole case list, with every instruction set and number of threads, against NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests import tolerances
from tests.csrc import cases, reference
from tests.csrc.conversation import bound, cache_step, conversation
from tests.csrc.guarded import Guards
from tests.csrc.reference import Array, Cache, Code, DType, RefusedError
from tests.tolerances import relative

THREADS = (1, 2, 3, 4)
UNTOUCHED = -12345  # what ids hold before a call


@dataclass
class Run:
    """What a kernel made of a case's calls."""

    cache: Cache
    codes: list[int] = field(default_factory=list)
    ids: list[Array] = field(default_factory=list)  # of the groups that were made
    logits: list[Array] = field(default_factory=list)
    before_refusal: list[bytes] = field(default_factory=list)  # the cache's arrays then

    @property
    def arrays(self) -> list[Array]:
        c = self.cache
        return [*c.keys, *c.values, *c.key_scales, *c.value_scales]


def run(kernels: Any, case: cases.Case, threads: int) -> Run:
    guards = Guards()
    weights, cache = guards.weights(cases.make_weights(case)), guards.cache(cases.make_cache(case))
    head, made = kernels.Head(case.shape, weights, cache, threads), Run(cache)
    for call in conversation(case).calls:
        ids = guards.put(np.full(case.shape.group_size, UNTOUCHED), writable=True)
        logits = guards.put(np.zeros((case.shape.group_size, case.shape.codes), np.float32), writable=True)
        try:
            if call.is_group:
                seen = guards.put(call.seen)
                row = guards.put(call.head_input)
                head.group(row, call.last_id, call.length, seen, call.sampling, ids, logits)
                made.ids.append(ids)
                made.logits.append(logits)
            else:
                head.prefill(guards.put(call.head_input), call.length)
            made.codes.append(Code.OK)
        except kernels.Refused as refused:
            made.codes.append(refused.code)
        if call.code == Code.OK:
            made.before_refusal = [a.tobytes() for a in made.arrays]
    guards.check()
    return made


_runs: dict[tuple[str, str], Run] = {}


def single(kernels: Any, case: cases.Case) -> Run:
    """The run with one thread."""
    key = (kernels.current_isa(), case.name)
    if key not in _runs:
        _runs[key] = run(kernels, case, 1)
    return _runs[key]


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_a_head_says_what_numpy_says(kernels: Any, case: cases.Case) -> None:
    made, expected = single(kernels, case), conversation(case)
    assert made.codes == [call.code for call in expected.calls]
    groups = [call for call in expected.calls if call.is_group and call.code == Code.OK]
    for call, ids, logits in zip(groups, made.ids, made.logits, strict=True):
        assert ids.tolist() == list(call.ids)
        assert relative(logits, call.logits) <= bound(case, call)
        limit = tolerances.CPU_KERNEL_RELATIVE + tolerances.CPU_KERNEL_NOISE_RATIO * call.noise + cache_step(case.cache)
        assert relative(logits, call.exact) <= limit


def test_a_rounding_seldom_falls_the_other_way(kernels: Any) -> None:
    """But over an int8 cache: its 16-bit factors, which the statement does not round, move rows by 1e-6."""
    quantized = [
        case
        for case in cases.HEADS
        if any(f.block for f in case.formats) and case.error == Code.OK and case.cache != DType.I8
    ]
    same = 0
    for case in quantized:
        groups = [call for call in conversation(case).calls if call.is_group and call.code == Code.OK]
        apart = [relative(found, call.logits) for call, found in zip(groups, single(kernels, case).logits, strict=True)]
        same += max(apart) <= tolerances.CPU_KERNEL_RELATIVE
    assert same >= tolerances.CPU_KERNEL_SAME_ROUNDING * len(quantized)


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_any_number_of_threads_makes_the_same_bits(kernels: Any, case: cases.Case) -> None:
    one = single(kernels, case)
    for threads in THREADS[1:]:
        other = run(kernels, case, threads)
        assert other.codes == one.codes
        for a, b in zip(one.ids + one.logits + one.arrays, other.ids + other.logits + other.arrays, strict=True):
            assert a.tobytes() == b.tobytes()


def stored(cache: Cache, arrays: list[Array], scales: list[Array], layer: int) -> Array:
    x = arrays[layer].astype(np.float64)
    return x * scales[layer][:, :, None] if cache.dtype == DType.I8 else x


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_the_cache_holds_what_numpy_stores(kernels: Any, case: cases.Case) -> None:
    made, expected = single(kernels, case).cache, conversation(case)
    calls = [call for call in expected.calls if call.code == Code.OK]
    if not calls or case.nan_weight:
        return
    filled, dim = expected.cache.length, case.shape.head_dim
    noise = max(call.noise for call in expected.calls)
    limit = tolerances.CPU_KERNEL_RELATIVE + noise + cache_step(case.cache)
    for layer in range(case.shape.layers):
        for name in ("keys", "values"):
            scales = f"{name[:-1]}_scales"
            found = stored(made, getattr(made, name), getattr(made, scales), layer)[:, :filled]
            wanted = stored(expected.cache, getattr(expected.cache, name), getattr(expected.cache, scales), layer)
            assert relative(found[:, :, :dim], wanted[:, :filled, :dim]) <= limit
            assert not found[:, :, dim:].any(), "the padding holds zeros"


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_nothing_is_written_where_no_position_is(kernels: Any, case: cases.Case) -> None:
    """A refused group may leave its own positions behind: they lie past the length, the next call writes them."""
    made, expected = single(kernels, case), conversation(case)
    late = case.error in (Code.NO_CHOICE, Code.NOT_FINITE) and not case.input_value
    if not late and made.codes[-1] != Code.OK:
        assert [a.tobytes() for a in made.arrays] == (made.before_refusal or [a.tobytes() for a in made.arrays])
    written = expected.cache.length + (case.shape.group_size if late else 0)
    for a in (*made.cache.keys, *made.cache.values, *made.cache.key_scales, *made.cache.value_scales):
        rest = a[:, written:]
        assert (rest == 99).all() if a.dtype == np.int8 else np.isnan(rest).all()


@pytest.mark.parametrize("case", [c for c in cases.HEADS if sum(c.prefill) > 1 and c.error == Code.OK], ids=str)
def test_prefills_may_be_cut_anywhere(kernels: Any, case: cases.Case) -> None:
    """All positions in one call, or one by one: the same bits."""
    rows = np.concatenate([cases.prefill_input(case, i) for i in range(len(case.prefill))])
    caches = []
    for cuts in ([len(rows)], [1] * len(rows), [len(rows) - 1, 1]):
        cache, at = Guards().cache(cases.make_cache(case)), 0
        head = kernels.Head(case.shape, cases.make_weights(case), cache, 2)
        for count in cuts:
            head.prefill(rows[at : at + count], at * case.shape.group_size)
            at += count
        caches.append(Run(cache).arrays)
    for other in caches[1:]:
        for a, b in zip(caches[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_prefill_past_the_end_is_refused_before_it_begins(kernels: Any) -> None:
    case = cases.HEADS[0]
    cache = Guards().cache(cases.make_cache(case))
    head, before = kernels.Head(case.shape, cases.make_weights(case), cache, 2), [a.copy() for a in Run(cache).arrays]
    rows = np.zeros((case.capacity // case.shape.group_size + 1, case.shape.hidden), np.float32)
    for length, wrong in ((0, rows), (case.capacity, rows[:1]), (-1, rows[:1])):
        with pytest.raises(kernels.Refused) as refused:
            head.prefill(wrong, length)
        assert refused.value.code == (Code.INVALID_ARGUMENT if length < 0 else Code.CACHE_FULL)
    rows[0, 3] = np.nan
    with pytest.raises(kernels.Refused) as refused:
        head.prefill(rows[:1], 0)
    assert refused.value.code == Code.NOT_FINITE
    for a, b in zip(Run(cache).arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", ["gate", "o", "v", "down"])
@pytest.mark.parametrize("f", [cases.F32, cases.F16, cases.I8_32, cases.I4_128], ids=str)
def test_nothing_that_is_not_finite_is_picked_from(kernels: Any, f: cases.Format, where: str) -> None:
    """A NaN in any weight reaches the scores, through rounded activations and an int8 cache as well."""
    case = cases.Case("nan inside", cases.SMALL, formats=(f,), cache=DType.I8)
    weights = cases.make_weights(case)
    packed = getattr(weights.layers[0], where)
    (packed.data if packed.scales is None else packed.scales).flat[5] = np.nan
    head = kernels.Head(case.shape, weights, cases.make_cache(case), 2)
    head.prefill(cases.prefill_input(case, 0), 0)
    with pytest.raises(kernels.Refused) as refused:
        head.group(cases.group_input(case, 0), 0, 10, cases.history(case), case.sampling)
    assert refused.value.code == Code.NOT_FINITE


@pytest.mark.parametrize("case", cases.PICKS, ids=str)
def test_a_pick_is_numpys(kernels: Any, case: cases.PickCase) -> None:
    guards = Guards()
    logits, seen = guards.put(case.logits), guards.put(case.seen)
    try:
        with np.errstate(all="ignore"):
            expected = reference.pick(case.logits, case.seen, case.sampling, case.number)
    except RefusedError as e:
        with pytest.raises(kernels.Refused) as refused:
            kernels.pick(logits, seen, case.sampling, case.number)
        assert refused.value.code == e.code
    else:
        assert kernels.pick(logits, seen, case.sampling, case.number) == expected
    guards.check()


@pytest.mark.parametrize("case", cases.GROUPS, ids=str)
def test_grouping_is_numpys(kernels: Any, case: cases.GroupCase) -> None:
    table, ids, text, rows = cases.group_tokens_arrays(case)
    guards = Guards()
    table, ids, rows = guards.matrix(table), guards.put(ids), guards.put(rows)
    text = None if text is None else guards.put(text)
    if case.bad_id is not None:
        with pytest.raises(kernels.Refused, match=str(case.bad_id)) as refused:
            kernels.group_tokens(table, ids, text)
        assert refused.value.code == Code.INVALID_ARGUMENT
    else:
        expected = reference.group_tokens(table, ids, text)
        assert relative(kernels.group_tokens(table, ids, text), expected) <= tolerances.CPU_KERNEL_RELATIVE
    means, expected = kernels.group_rows(rows, case.group_size), reference.group_rows(rows, case.group_size)
    assert means.shape == expected.shape
    if len(rows):
        assert relative(means, expected) <= tolerances.CPU_KERNEL_RELATIVE
    guards.check()


@pytest.mark.parametrize("pool", range(5), ids=["threads", "one by one", "backwards", "late", "leader only"])
@pytest.mark.parametrize("threads", [2, 4])
def test_a_team_runs_every_chunk_once(any_kernels: Any, pool: int, threads: int) -> None:
    calls = 200 if pool == 0 else 20
    assert any_kernels("plain").team_stress(pool, threads, calls, 1000) == 0
