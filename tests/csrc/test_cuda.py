"""The CUDA kernels against their NumPy statement: on a GPU where one is, and their sources on the CPU everywhere
(tests/csrc/cuda_emulation)."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.sampling import uniform
from tests.csrc import cases, cuda_kernels
from tests.csrc import reference as ref
from tests.tolerances import CACHE_STEPS, KERNEL_RELATIVE, LOGITS_OVER_LARGEST, relative

PROCESSORS = 3
ORDERS = (1, 2, 3)  # how threads take turns: backwards, and shuffled twice


@pytest.fixture(scope="module", params=["emulated", "device"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    command = cuda_kernels.EMULATED if request.param == "emulated" else cuda_kernels.NATIVE
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    if request.param == "device" and shutil.which("nvidia-smi") is None:
        pytest.skip("no GPU here")
    library = cuda_kernels.build(cuda_kernels.ROOT / "build" / "cuda_tests", command)
    if library.edge_devices() == 0:
        pytest.skip("no GPU here")
    return library


@pytest.fixture
def kernels(library: ctypes.CDLL) -> Iterator[cuda_kernels.Kernels]:
    kernels = cuda_kernels.Kernels(library)
    kernels.processors(PROCESSORS)
    yield kernels
    kernels.order(0)


class Conversation:
    """A case played by the kernel, and by the statement that takes the kernel's picks for its own."""

    def __init__(self, kernels: cuda_kernels.Kernels, case: cases.Case) -> None:
        self.case = case
        self.kernel = cuda_kernels.Head(kernels, case, cases.make_cache(case))
        self.statement = ref.SpeechHeadReference(case.shape, cases.make_weights(case), cases.make_cache(case))
        self.seen = cases.history(case)
        self.played = 0

    def prefill(self) -> None:
        for call in range(len(self.case.prefill)):
            head_input = cases.prefill_input(self.case, call)
            self.kernel.prefill(head_input)
            self.statement.prefill(head_input)
            assert self.kernel.state.length == self.statement.cache.length

    def group(self) -> None:
        """One group by both; everything that the kernel leaves behind is looked at."""
        case, state = self.case, self.kernel.state
        head_input, last, length, step = cases.group_input(case, self.played), state.last_id, state.length, state.step
        found = self.kernel.group(head_input, self.seen)
        expected = self.statement.group(head_input, last, self.seen, case.sampling, forced=found.ids)
        for a, b in zip(found.logits, expected.logits, strict=True):
            assert np.abs(a - b).max() <= LOGITS_OVER_LARGEST[case.cache] * np.abs(b).max()
        assert found.ids == picks(case, found.logits, self.seen, step)
        assert (state.last_id, state.length, state.step) == (found.ids[-1], length + case.shape.group_size, step + 1)
        self.seen[found.ids] = 1
        self.played += 1

    def check_cache(self) -> None:
        self.kernel.arena.check()
        k, s = self.kernel.cache, self.statement.cache
        filled = s.length
        if self.case.cache == ref.DType.I8:
            for a, b in zip(k.key_scales + k.value_scales, s.key_scales + s.value_scales, strict=True):
                assert relative(a[:, :filled], b[:, :filled]) < KERNEL_RELATIVE
        for a, b in zip(k.keys + k.values, s.keys + s.values, strict=True):
            difference = np.abs(a[:, :filled].astype(float) - b[:, :filled].astype(float)).max(initial=0)
            assert difference <= CACHE_STEPS[self.case.cache] * np.abs(b.astype(float)).max()
            assert not a[:, :filled, self.case.shape.head_dim :].any(), "padding of a written row is zero"
            assert not a[:, filled:].any(), "positions past the end are untouched"


def picks(case: cases.Case, logits: list[ref.Array], seen: ref.Array, step: int) -> list[int]:
    """What must be picked from the kernel's own logits."""
    seen, s, found = seen.copy(), case.sampling, []
    for j, row in enumerate(logits):
        found.append(ref.pick(row, seen, s, uniform(s.seed, s.turn, step, j)))
        seen[found[-1]] = 1
    return found


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_speech_head(kernels: cuda_kernels.Kernels, case: cases.Case) -> None:
    played = Conversation(kernels, case)
    played.prefill()
    for _ in range(case.groups - (case.error != 0)):
        played.group()
    played.check_cache()
    if case.error or case.overfull:
        expected = case.error or ref.Code.CACHE_FULL
        state = played.kernel.state
        before = (state.last_id, state.length, state.step)
        for _ in range(2):  # an error stays until the caller has taken it away
            with pytest.raises(ref.RefusedError) as refused:
                played.kernel.group(cases.group_input(case, played.played), played.seen)
            assert refused.value.code == expected
        assert (state.last_id, state.length, state.step) == before


LONG = next(case for case in cases.HEADS if case.name == "long cache")
SEVERAL = [case for case in cases.HEADS if case.name in ("odd", "ties drawn", "mixed wide group cache i8")]


@pytest.mark.parametrize("processors", [1, 2, 5, 9])
@pytest.mark.parametrize("cache", list(ref.DType)[:3])
def test_a_long_cache_is_cut_among_the_blocks(kernels: cuda_kernels.Kernels, processors: int, cache: ref.DType) -> None:
    """With 9 blocks and 2 pairs of heads each query's 455 positions are cut in four."""
    case = replace(LONG, cache=cache)
    kernels.processors(processors)
    played = Conversation(kernels, case)
    # The prefill's own correctness is another test's: here the statement fills the cache, as it does no position twice.
    rng = cases.generator(case.name, "cache")
    filled = sum(case.prefill) * case.shape.group_size
    for layer in range(case.shape.layers):
        for position in range(filled):
            key, value = rng.standard_normal((2, case.shape.kv_heads, case.shape.head_dim))
            for own in (played.kernel.cache, played.statement.cache):
                own.write(layer, position, key, value)
    played.kernel.state.length = played.statement.cache.length = filled
    played.group()
    played.check_cache()


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_the_order_of_threads_changes_no_bit(kernels: cuda_kernels.Kernels, case: cases.Case) -> None:
    """Nor does the number of blocks, but for attention's parts, which short caches do not have."""
    played = []
    for order, processors in ((0, PROCESSORS), *((order, PROCESSORS) for order in ORDERS), (0, 7)):
        kernels.order(order)
        kernels.processors(processors)
        head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
        head.prefill(cases.prefill_input(case, 0))
        played.append((head, head.group(cases.group_input(case, 0), cases.history(case))))
    for head, group in played[1:]:
        assert group.ids == played[0][1].ids
        np.testing.assert_array_equal(group.logits, played[0][1].logits)
        for a, b in zip(head.cache.keys, played[0][0].cache.keys, strict=True):
            np.testing.assert_array_equal(a, b)


def test_logits_may_stay_inside(kernels: cuda_kernels.Kernels) -> None:
    case = SEVERAL[0]
    groups = []
    for keep in (True, False):
        head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
        groups.append(head.group(cases.group_input(case, 0), cases.history(case), keep).ids)
    assert groups[0] == groups[1]


DRAWING = next(case for case in cases.HEADS if case.name == "ties drawn")


def test_settings_from_device_memory(kernels: cuda_kernels.Kernels) -> None:
    """They count in place of those among the parameters, and may differ from group to group."""
    settings = (
        DRAWING.sampling, replace(DRAWING.sampling, seed=2**63 + 5, top_k=3), ref.Sampling(repetition_penalty=1.3),
        replace(DRAWING.sampling, top_p=0.2, temperature=1.7),
    )  # fmt: skip
    for sampling in settings:
        made = []
        for case, given in ((replace(DRAWING, sampling=sampling), None), (DRAWING, sampling)):
            head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
            head.prefill(cases.prefill_input(case, 0))
            rest = (cases.group_input(case, 0), cases.history(case))
            made.append(head.group(*rest, device_sampling=given))
        assert made[0].ids == made[1].ids
        np.testing.assert_array_equal(made[0].logits, made[1].logits)


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.0}, {"temperature": np.nan}, {"repetition_penalty": -1.0}, {"top_p": -0.1}, {"top_k": -1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(kernels: cuda_kernels.Kernels, change: dict[str, float]) -> None:
    head = cuda_kernels.Head(kernels, DRAWING, cases.make_cache(DRAWING))
    rest = (cases.group_input(DRAWING, 0), cases.history(DRAWING))
    with pytest.raises(ref.RefusedError, match="INVALID_ARGUMENT"):
        head.group(*rest, device_sampling=replace(DRAWING.sampling, **change))  # type: ignore[arg-type]
    assert head.state.length == 0
    head.state.error = 0
    head.group(*rest, device_sampling=DRAWING.sampling)


def test_forced_ids(kernels: cuda_kernels.Kernels) -> None:
    """They are taken whatever the scores say, and what follows is computed from them; -1 leaves the pick."""
    case, size = DRAWING, DRAWING.shape.group_size
    rest = (cases.group_input(case, 0), cases.history(case))
    head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
    forced = np.arange(size, dtype=np.int64) * 3 % case.shape.codes
    forced[0] = -1
    statement = ref.SpeechHeadReference(case.shape, cases.make_weights(case), cases.make_cache(case))
    last = head.state.last_id
    found = head.group(*rest, forced=forced)
    assert found.ids[1:] == list(forced[1:])
    expected = statement.group(rest[0], last, rest[1], case.sampling, forced=found.ids)
    for a, b in zip(found.logits, expected.logits, strict=True):
        assert np.abs(a - b).max() <= LOGITS_OVER_LARGEST[case.cache] * np.abs(b).max()
    assert found.ids[0] == picks(case, found.logits, rest[1], head.state.step - 1)[0]
    forced[-1] = case.shape.codes
    with pytest.raises(ref.RefusedError, match="INVALID_ARGUMENT"):
        head.group(*rest, forced=forced)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_prefill_refuses_what_is_not_finite(kernels: cuda_kernels.Kernels, value: float) -> None:
    case = SEVERAL[0]
    head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
    head_input = cases.prefill_input(case, 0)
    head_input[-1, -1] = value
    for _ in range(2):
        with pytest.raises(ref.RefusedError, match="NOT_FINITE"):
            head.prefill(head_input)
    with pytest.raises(ref.RefusedError, match="NOT_FINITE"):  # no group on top of a prefill that failed
        head.group(cases.group_input(case, 0), cases.history(case))
    assert head.state.length == 0
    assert not any(rows.any() for rows in head.cache.keys)
    head.state.error = 0
    head.prefill(cases.prefill_input(case, 0))
    assert head.state.length == case.prefill[0] * case.shape.group_size


def test_prefill_refuses_more_than_the_cache_takes(kernels: cuda_kernels.Kernels) -> None:
    case = replace(SEVERAL[0], spare=0, groups=0)
    head = cuda_kernels.Head(kernels, replace(case, prefill=(case.prefill[0] + 1,)), cases.make_cache(case))
    with pytest.raises(ref.RefusedError, match="CACHE_FULL"):
        head.prefill(np.concatenate([cases.prefill_input(case, 0), cases.prefill_input(case, 0)[:1]]))
    assert head.state.length == 0


@pytest.mark.parametrize("length", [-1, 10**6])
def test_a_wrong_length_is_refused(kernels: cuda_kernels.Kernels, length: int) -> None:
    case = SEVERAL[0]
    head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
    head.state.length = length
    with pytest.raises(ref.RefusedError, match="INVALID_ARGUMENT"):
        head.group(cases.group_input(case, 0), cases.history(case))


def test_what_cuda_does_not_support_is_refused_with_the_number(kernels: cuda_kernels.Kernels) -> None:
    case = replace(cases.HEADS[1], shape=replace(cases.ONE, layers=65), groups=1, prefill=(1,))
    head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
    with pytest.raises(cuda_kernels.DeviceError, match="layers is 65, at most 64"):
        head.prefill(cases.prefill_input(case, 0))
    case = replace(case, shape=replace(cases.ONE, codes=100_000))
    head = cuda_kernels.Head(kernels, case, cases.make_cache(case))
    with pytest.raises(cuda_kernels.DeviceError, match="bytes of shared memory"):
        head.group(cases.group_input(case, 0), cases.history(case))


@pytest.mark.parametrize("case", cases.PICKS, ids=str)
def test_pick(kernels: cuda_kernels.Kernels, case: cases.PickCase) -> None:
    found = []
    for pick in (lambda: ref.pick(case.logits, case.seen, case.sampling, case.number), lambda: kernels.pick(case)):
        try:
            found.append(("id", pick()))
        except ref.RefusedError as refused:
            found.append(("refused", refused.code))
    assert found[0] == found[1]


@pytest.mark.parametrize("case", cases.GROUPS, ids=str)
def test_group_tokens(kernels: cuda_kernels.Kernels, case: cases.GroupCase) -> None:
    table, ids, text, rows = cases.group_tokens_arrays(case)
    for in_place in (False, True):
        found, bad = kernels.group_tokens(table, ids, text, in_place)
        assert relative(found, ref.group_tokens(table, ids, text)) < KERNEL_RELATIVE
        assert bool(bad) == (case.bad_id is not None)
    found = kernels.group_rows(rows, case.group_size)
    if len(rows):
        assert relative(found, ref.group_rows(rows, case.group_size)) < KERNEL_RELATIVE


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (0, r"waits alone at .*cuda_shim.cu:\d+"),
        (1, r"waits at .*cuda_shim.cu:\d+ where others wait at .*cuda_shim.cu:\d+"),
        (2, "waits for other blocks for ever"),
        (3, "shared memory written past its end"),
    ],
)
def test_the_emulation_finds_faults(kernels: cuda_kernels.Kernels, which: int, said: str) -> None:
    if not kernels.emulated:
        pytest.skip("a device would hang, or hide it")
    with pytest.raises(cuda_kernels.DeviceError, match=said):
        kernels.call("edge_faulty", which)
