"""What must come out of a case: its calls in order, each with what the NumPy statement makes of it.

Two statements are run. One does what the CPU kernels do, integer products of rounded activations; the other keeps
activations exact. Their distance is the noise that rounding brings, and the measure of what a kernel may differ by.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np

from tests import tolerances
from tests.csrc import cases
from tests.csrc.reference import Array, Cache, Code, DType, RefusedError, Sampling, SpeechHeadReference


@dataclass(frozen=True)
class Call:
    """A prefill (`ids` and `logits` empty) or a group, after `length` positions."""

    head_input: Array
    length: int
    code: Code = Code.OK
    is_group: bool = False
    last_id: int = 0
    seen: Array | None = None
    sampling: Sampling = field(default_factory=Sampling)
    ids: tuple[int, ...] = ()
    logits: Array | None = None  # float32 [G, codes], of rounded activations
    exact: Array | None = None  # the same of exact ones, after the same ids

    @property
    def noise(self) -> float:
        return 0.0 if self.logits is None else tolerances.relative(self.logits, self.exact)


@dataclass(frozen=True)
class Conversation:
    calls: tuple[Call, ...]
    cache: Cache  # as the last call leaves it


def bound(case: cases.Case, call: Call) -> float:
    """What a kernel's logits may differ by from the statement of the same arithmetic, relative."""
    return tolerances.CPU_KERNEL_RELATIVE + call.noise + cache_step(case.cache)


def cache_step(dtype: DType) -> float:
    return {
        DType.F32: 0.0,
        DType.F16: tolerances.CPU_KERNEL_CACHE_STEP_F16,
        DType.I8: tolerances.CPU_KERNEL_CACHE_STEP_I8,
    }[dtype]


@functools.cache
def conversation(case: cases.Case) -> Conversation:
    """Every call of a case, to the one that is refused, if one is."""
    weights, seen = cases.make_weights(case), cases.history(case)
    head = SpeechHeadReference(case.shape, weights, cases.make_cache(case), quantize_activations=True)
    exact = SpeechHeadReference(case.shape, weights, cases.make_cache(case))
    calls: list[Call] = []
    with np.errstate(all="ignore"):
        for index in range(len(case.prefill)):
            head_input = cases.prefill_input(case, index)
            calls.append(Call(head_input, head.cache.length))
            head.prefill(head_input)
            exact.prefill(head_input)
        last = case.first_id
        for index in range(case.groups + case.overfull):
            call = _group(case, index, last, seen, head, exact)
            calls.append(call)
            if call.code != Code.OK:
                break
            seen = seen.copy()
            seen[list(call.ids)] = 1
            last = call.ids[-1]
    return Conversation(tuple(calls), head.cache)


def _group(
    case: cases.Case, index: int, last: int, seen: Array, head: SpeechHeadReference, exact: SpeechHeadReference
) -> Call:
    sampling = replace(case.sampling, step=case.sampling.step + index)
    head_input = cases.group_input(case, index)
    call = Call(head_input, head.cache.length, is_group=True, last_id=last, seen=seen, sampling=sampling)
    try:
        made = head.group(head_input, last, seen, sampling)
    except RefusedError as refused:
        return replace(call, code=refused.code)
    other = exact.group(head_input, last, seen, sampling, forced=made.ids)
    return replace(call, ids=tuple(made.ids), logits=np.array(made.logits), exact=np.array(other.logits))
