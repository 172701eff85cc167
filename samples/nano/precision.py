"""Which numbers a device multiplies quickly."""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the quick way there: every CUDA device, and CPUs with AVX512-BF16 or AMX (4 to 5 times
    float32's speed on one core, docs/NOTES.md)."""
    if device.type != "cpu":
        return device.type == "cuda"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since torch 2.11
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
