"""Attention of one new token over cached keys and values, on a CPU.

PyTorch's CPU kernel is made for many queries: for a single one it takes two to three times as long
as two batched products. Those want whole buffers, so what is not filled yet is masked.

Shapes: R rows, N heads, K key/value heads, C positions of the buffer, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "caravan_decode"
MODEL_TYPES = ("llama", "qwen2", "qwen3")
"""Models whose attention is plain causal attention; others may have windows, sinks or caps."""


def suits(model: PreTrainedModel) -> bool:
    """Whether `model` can decode with this attention."""
    config = model.config
    return bool(
        model.device.type == "cpu"
        and config.model_type in MODEL_TYPES
        and config._attn_implementation == "sdpa"
    )


@contextmanager
def decode_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` attends with `attend`; for passes of one token a row."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """[R, N, 1, D] softmax(scale * query @ key.T + bias) @ value.

    Args:
        query: [R, N, 1, D].
        key: [R, K, C, D], contiguous, as `value`.
        bias: [R, 1, 1, C]: 0 where the token may look, minus infinity elsewhere.
    """
    rows, heads, _, size = query.shape
    shared = key.shape[1]
    q = query.reshape(rows * shared, heads // shared, size)
    added = bias.to(q.dtype).expand(rows, shared, heads // shared, -1).flatten(0, 1)
    scores = torch.baddbmm(added, q, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    attended = torch.bmm(scores.softmax(-1).to(value.dtype), value.flatten(0, 1))
    return attended.view(rows, heads, 1, size)


def _for_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _for_transformers)
