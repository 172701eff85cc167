"""The kernels' NumPy statement against the package's own sampling and plain matrix arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.errors import Error
from edge_sdk.sampling import History
from edge_sdk.sampling import Sampling as SdkSampling
from tests.csrc import cases
from tests.csrc.conversation import conversation
from tests.csrc.reference import (
    DType,
    Linear,
    RefusedError,
    SpeechHeadReference,
    dequantize,
    pick,
    quantize,
    random_matrix,
    uniform,
)
from tests.tolerances import relative

FORMATS = (cases.F32, cases.F16, *(f for f in cases.MIXED if f.block))


def distinct(case: cases.PickCase) -> bool:
    """Equal scores leave the SDK's top-p open; the kernels take the lower id first."""
    return case.sampling.top_p >= 1 or len(np.unique(case.logits)) == len(case.logits)


@pytest.mark.parametrize("case", [c for c in cases.PICKS if distinct(c)], ids=str)
def test_picks_are_the_sdks(case: cases.PickCase) -> None:
    s = case.sampling
    theirs = SdkSampling(s.do_sample, s.temperature, s.top_p, s.top_k, s.repetition_penalty)
    seen = History(len(case.logits), np.flatnonzero(case.seen))
    try:
        expected = theirs.pick(case.logits, seen, case.number)
    except Error:
        with pytest.raises(RefusedError):
            pick(case.logits, case.seen, s, case.number)
    else:
        if np.isfinite(case.logits).all():  # the SDK looks at the best score only
            assert pick(case.logits, case.seen, s, case.number) == expected


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_a_matrix_survives_packing(f: cases.Format) -> None:
    rng = np.random.default_rng(1)
    matrix = random_matrix(rng, 9, 300)
    packed = quantize(matrix, f.dtype, f.block, f.scale_dtype)
    back = dequantize(packed)
    # half a step of the largest value; a scale rounded to float16 moves the ends by little more
    half_step = {DType.F32: 0.0, DType.F16: 0.5**11, DType.I8: 0.51 / 127, DType.I4: 0.51 / 7}[f.dtype]
    assert np.abs(back - matrix).max() <= half_step * np.abs(matrix).max()
    again = quantize(back.astype(np.float32), f.dtype, f.block, DType.F32)
    if f.scale_dtype == DType.F32:
        np.testing.assert_array_equal(again.data, packed.data)


@pytest.mark.parametrize("f", [f for f in FORMATS if f.block], ids=str)
def test_integer_products_are_those_of_the_rounded_activation(f: cases.Format) -> None:
    rng = np.random.default_rng(2)
    packed = quantize(random_matrix(rng, 9, 300), f.dtype, f.block, f.scale_dtype)
    x = rng.standard_normal(300)
    exact = Linear(packed)(x)
    coarse = Linear(packed, quantize_activations=True)(x)
    assert 0 < relative(coarse, exact) < 2 / 127
    fine = Linear(packed, quantize_activations=True, activation_block=32)(x)
    assert 0 < relative(fine, exact) < 2 / 127


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_every_case_ends_as_it_says(case: cases.Case) -> None:
    head = SpeechHeadReference(case.shape, cases.make_weights(case), cases.make_cache(case))
    seen, last = cases.history(case), case.first_id
    for call in range(len(case.prefill)):
        head.prefill(cases.prefill_input(case, call))
    for group in range(case.groups):
        expected = case.error if group == case.groups - 1 else 0
        try:
            last = head.group(cases.group_input(case, group), last, seen, case.sampling).ids[-1]
        except RefusedError as refused:
            assert refused.code == expected
        else:
            assert expected == 0
    assert head.cache.length == case.capacity - case.spare - (case.error != 0) * case.shape.group_size
    if case.overfull:
        with pytest.raises(RefusedError, match="CACHE_FULL"):
            head.group(cases.group_input(case, case.groups), last, seen, case.sampling)


@pytest.mark.parametrize("case", cases.HEADS, ids=str)
def test_no_pick_of_the_case_list_hangs_on_a_rounding(case: cases.Case) -> None:
    """With exact activations the ids are those of rounded ones: where a kernel's sum lets an activation fall to the
    other side, the ids stay comparable. A case that fails here takes another seed, or another name (its weights' seed).
    """
    for call in conversation(case).calls:
        if call.logits is None or call.exact is None or call.seen is None:
            continue
        seen, s = call.seen.copy(), call.sampling
        for j, (row, chosen) in enumerate(zip(call.exact, call.ids, strict=True)):
            assert pick(row, seen, s, uniform(s.seed, s.turn, s.step, j)) == chosen
            seen[chosen] = 1
