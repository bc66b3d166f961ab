"""The precision that passes compute in."""

from __future__ import annotations

import torch


def autocast(device: str, bf16: bool) -> torch.autocast:
    """bfloat16 where `bf16` asks for it and the device has it; a CPU that emulates it is many times
    slower than in float32 (a hundred times with AVX2)."""
    native = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device, torch.bfloat16, enabled=bf16 and native)
