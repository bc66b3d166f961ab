"""The precision that passes compute in."""

from __future__ import annotations

import torch


def autocast(device: str, bf16: bool) -> torch.autocast:
    """Casts to bfloat16 what `computes_in_bf16`."""
    return torch.autocast(device, torch.bfloat16, enabled=computes_in_bf16(device, bf16))


def computes_in_bf16(device: str, bf16: bool) -> bool:
    """bfloat16 where `bf16` asks for it and the device has it; a CPU that emulates it is many times
    slower than in float32 (a hundred times with AVX2)."""
    return bf16 and (device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
