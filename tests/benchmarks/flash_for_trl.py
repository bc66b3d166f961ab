"""Flash attention for TRL where the package `flash_attn`, which has no wheels, is not installed.

PyTorch carries the same kernels. transformers is given those where it would import the package, so
TRL packs and pads as it does with it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, modeling_flash_attention_utils

from caravan.training.attention import causal_varlen


def use_flash_attention(model: PreTrainedModel) -> None:
    """Of transformers, in `model`, which is on a GPU."""
    found = modeling_flash_attention_utils
    kernels = (_flash, _varlen, None, found._pad_input, found._unpad_input)
    found._lazy_imports = lambda *_, **__: kernels
    model.config._attn_implementation = "flash_attention_2"


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    assert causal
    return causal_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale
    )


def _flash(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    attended = F.scaled_dot_product_attention(
        *(states.transpose(1, 2) for states in (q, k, v)),
        is_causal=causal, scale=softmax_scale, enable_gqa=True,
    )  # fmt: skip
    return attended.transpose(1, 2)
