"""The device a command computes on, and what it multiplies quickly."""

from __future__ import annotations

import torch

from edge_sdk.errors import Error


def device_of(name: str | None) -> torch.device:
    """The device of that name; None: the GPU where there is one.

    Raises:
        Error: there is none of that name here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device).cpu()  # "meta" has nothing to copy
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # what torch says of CUDA that it lacks
        raise Error(f"the device '{name}' cannot be used here: {str(e).partition(chr(10))[0]}") from e
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the quick way there: every CUDA device, and CPUs with AVX512-BF16 or AMX (4 to 5 times
    float32's speed on one core, docs/NOTES.md)."""
    if device.type != "cpu":
        return device.type == "cuda"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since torch 2.11
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
