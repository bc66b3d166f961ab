"""Signs of trouble in a training run, and what it makes of the device."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

WINDOW_STEPS = 50
"""Steps whose losses say what is usual."""
FEWEST_STEPS = 10
SPIKE_DEVIATIONS = 6.0
SPIKE_RATIO = 1.25

PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "B200": 2250e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 operations per second by part of the device's name (NVIDIA's data sheets)."""


@dataclass
class SpikeWatch:
    """Finds losses far above those of the steps before."""

    losses: list[float] = field(default_factory=list)
    """Of the last steps."""
    spikes: int = 0

    def watch(self, loss: float) -> bool:
        """Whether `loss` is a spike: above the median by a quarter and by six deviations.

        The deviation is 1.4826 times the median absolute one, so that a spike does not hide the
        next. Losses that are not finite are left to others.
        """
        if not math.isfinite(loss):
            return False
        found = False
        if len(self.losses) >= FEWEST_STEPS:
            middle = statistics.median(self.losses)
            spread = 1.4826 * statistics.median(abs(one - middle) for one in self.losses)
            found = loss > middle + max(SPIKE_DEVIATIONS * spread, (SPIKE_RATIO - 1) * abs(middle))
        self.spikes += found
        self.losses = [*self.losses, loss][-WINDOW_STEPS:]
        return found

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "spikes": self.spikes}


def speed(
    model: PreTrainedModel, tokens: int, supervised: int, seconds: float, ranks: int
) -> dict[str, float]:
    """`perf/tokens_per_second`; on a GPU also `perf/peak_gpu_memory_gib`, and `perf/mfu`, the share
    of the device's peak, where that is known.

    Args:
        tokens: that went through the model on all ranks.
        supervised: those of them whose successors are trained on.
    """
    values = {"perf/tokens_per_second": tokens / seconds}
    device = model.device
    if device.type == "cuda":
        values["perf/peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        peak = peak_flops(torch.cuda.get_device_name(device))
        if peak is not None:
            done = operations(model, tokens, supervised)
            values["perf/mfu"] = done / (seconds * peak * ranks)
    return values


def peak_flops(device_name: str) -> float | None:
    return next((flops for part, flops in PEAK_FLOPS.items() if part in device_name), None)


def operations(model: PreTrainedModel, tokens: int, supervised: int) -> int:
    """Of the linear layers in a training step, forward and backward.

    A token takes 6 for each weight (Kaplan et al. 2020, arXiv:2001.08361, table 1), or 4 where the
    weight is frozen and has no gradient of its own. Through the output head go `supervised` tokens
    only. Attention itself and recomputation are not counted.
    """
    head = model.get_output_embeddings()
    return sum(
        (6 if module.weight.requires_grad else 4)
        * module.in_features  # whatever ZeRO or 4 bits have made of the weight
        * module.out_features
        * (supervised if module is head else tokens)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )
