"""Fused kernels of Liger for norms, rotary embeddings and gated layers, where they can run.

The output head keeps `logprobs.linear_logprobs`: it serves every objective, and Liger's fused cross
entropy one.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel


def use_fused_kernels(model: PreTrainedModel, device: torch.device) -> bool:
    """Patch `model` in place; gives whether that was done: on a GPU with `liger_kernel` installed
    (the extra `train-gpu`), for the architectures that it knows."""
    if device.type != "cuda" or find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    _apply_liger_kernel_to_instance(
        model, rope=True, rms_norm=True, swiglu=True, cross_entropy=False,
        fused_linear_cross_entropy=False,
    )  # fmt: skip
    return True
