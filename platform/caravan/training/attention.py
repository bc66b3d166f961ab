"""Causal attention for training short rows on a CPU in bfloat16.

PyTorch's CPU kernel takes as long for the attention of rows of 256 tokens as for half of all the
matrix products of a small model. Two batched products and a softmax, entirely in bfloat16, need
about half of that. They hold the T x T probabilities, so longer rows keep PyTorch's kernel.

Shapes: B rows, N heads, T tokens, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "caravan_short_rows"
MAX_TOKENS = 512
MODEL_TYPES = ("llama", "qwen2", "qwen3")
"""Models whose attention is plain causal attention; others may have windows, sinks or caps."""


@contextmanager
def short_row_attention(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Inside, `model` attends with `causal_attention` where that is faster and means the same.

    For rows padded on the right or not at all: no mask but the causal one is applied.
    """
    config = model.config
    suits = (
        model.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and tokens <= MAX_TOKENS
        and config.model_type in MODEL_TYPES
        and not getattr(config, "use_sliding_window", False)
        and not getattr(config, "attention_dropout", 0.0)
        # A checkpointed layer runs again in the backward pass, outside this context.
        and not getattr(model.base_model, "gradient_checkpointing", False)
    )
    before = config._attn_implementation
    if suits:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[B, N, T, D] bfloat16 softmax(scale * query @ key.T, causal) @ value, of equal shapes."""
    apply = cast(Any, _CausalAttention).apply
    return cast(Tensor, apply(query.bfloat16(), key.bfloat16(), value.bfloat16(), scale))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        shape = query.shape
        q = (query * scale).flatten(0, 1)
        k, v = key.flatten(0, 1), value.flatten(0, 1)
        future = torch.full((shape[2], shape[2]), float("-inf"), dtype=q.dtype).triu_(1)
        probabilities = torch.bmm(q, k.transpose(1, 2)).add_(future).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale, ctx.shape = scale, shape
        return torch.bmm(probabilities, v).view(shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probabilities = ctx.saved_tensors
        grad = upstream[0].flatten(0, 1)
        value_grad = torch.bmm(probabilities.transpose(1, 2), grad)
        grad = torch.ops.aten._softmax_backward_data(
            torch.bmm(grad, v.transpose(1, 2)), probabilities, -1, probabilities.dtype
        )
        query_grad = torch.bmm(grad, k).mul_(ctx.scale)
        key_grad = torch.bmm(grad.transpose(1, 2), q)
        shape = ctx.shape
        return query_grad.view(shape), key_grad.view(shape), value_grad.view(shape), None


def _for_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None, "rows are padded on the right and need no mask"
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _for_transformers)
