"""Fused kernels for a GPU: Liger's for norms, rotary embeddings and gated layers, and what PyTorch
compiles for `output_head`, which serves every objective where Liger's fused cross
entropy serves one.

Shapes: S tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@cache
def can_compile() -> bool:
    """Whether kernels can be made here: Triton needs the machine's C compiler when it runs."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang"))
    there = find_spec("triton") is not None and any(map(shutil.which, compilers))
    if not there:
        logger.warning("slower kernels are used: install triton, and gcc or clang, on this machine")
    return there


@cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one kernel for every number of tokens, compiled when it is first called."""
    return torch.compile(function, dynamic=True)


def pick_logits(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[S] the logits [S, V] at `labels` [S], and [S] the logarithm of the sum of exponentials."""
    scaled = logits.float() / temperature
    return scaled.gather(1, labels[:, None]).squeeze(1), torch.logsumexp(scaled, dim=1)


def logits_gradient(
    logits: Tensor, labels: Tensor, normaliser: Tensor, scale: Tensor, temperature: float
) -> Tensor:
    """[S, V] d logp(label) / d logits = onehot(label) - softmax, times `scale` [S], in the
    precision of `logits`."""
    softmax = (logits.float() / temperature - normaliser[:, None]).exp()
    places = torch.arange(logits.shape[1], device=logits.device)
    onehot = (places == labels[:, None]).float()
    return ((onehot - softmax) * scale[:, None]).to(logits.dtype)


def use_fused_kernels(model: PreTrainedModel, device: torch.device) -> bool:
    """Patch `model` in place; gives whether that was done: on a GPU with `liger_kernel` installed
    (the extra `train-gpu`), for the architectures that it knows."""
    if device.type != "cuda" or find_spec("liger_kernel") is None or not can_compile():
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
