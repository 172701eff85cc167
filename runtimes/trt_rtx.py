"""TensorRT-RTX, for desktop GPUs. What it shares with its sibling stands in trt_runtime.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_sdk.runtimes import trt_runtime

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle

NAME = "tensorrt_rtx"


def unavailable() -> str:
    """ "" if this runtime can be used here, else the reason."""
    return trt_runtime.unavailable(NAME)


def unfit(bundle: Bundle, device_id: int) -> str:
    """ "" if `bundle` has engines for this runtime and GPU, else why not."""
    return trt_runtime.unfit(NAME, bundle, device_id)


def open_runtime(bundle: Bundle, *, device_id: int, threads: int | None) -> trt_runtime.TrtRuntime:
    return trt_runtime.open_runtime(NAME, bundle, device_id=device_id, threads=threads)
