"""Causal attention over rows that lie side by side without padding (see `packing`).

On a GPU, PyTorch's kernel for rows of unequal length. Elsewhere, segments of like length are put
into padded groups, and each group is attended to with two batched products and a softmax: PyTorch's
CPU kernel takes twice as long for rows of a few hundred tokens. The products hold the probabilities
of a group, so groups of longer rows keep PyTorch's kernel.

Shapes: N tokens, H heads (K of keys and values), D dimensions of a head; of a group G segments, Q
queries, C keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from caravan.training.packing import Layout, Segment, key_places

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch 2.9
    varlen_attn = None  # type: ignore[assignment]
VARLEN_OPTIONS = set() if varlen_attn is None else set(inspect.signature(varlen_attn).parameters)

NAME = "caravan_packed"
MAX_KEYS = 512
"""Of groups whose probabilities are held."""
GROUP = 4
"""Segments of a group. All groups have as many, and round sizes: see `packing.WHOLE_TOKENS`."""
MODEL_TYPES = ("llama", "qwen2", "qwen3")
"""Models whose attention is plain causal attention; others may have windows, sinks or caps."""


def attends_packed(model: PreTrainedModel) -> bool:
    """Whether `model` can take packed rows; if so, it is made ready for them.

    Its other calls are not changed: without a layout, the attention is transformers' own.
    """
    config = model.config
    if config._attn_implementation == NAME:
        return True
    suits = (
        config._attn_implementation == "sdpa"
        and config.model_type in MODEL_TYPES
        and not getattr(config, "use_sliding_window", False)
        and not getattr(config, "attention_dropout", 0.0)
    )
    if suits:
        config._attn_implementation = NAME
    return suits


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> Tensor:
    """[N, H, D] softmax(scale * query @ key.T) @ value, every token seeing what `layout` says.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
    """
    if query.dtype != value.dtype:  # autocast leaves rotary embeddings in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    half = query.dtype in (torch.bfloat16, torch.half)
    if query.is_cuda and half and "window_size" in VARLEN_OPTIONS:  # PyTorch 2.11 and later
        return _varlen_attention(query, key, value, layout, scale)
    return _grouped_attention(query, key, value, layout, scale)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> Tensor:
    rows = layout.varlen
    if rows.key_places is not None:
        key, value = key[rows.key_places], value[rows.key_places]
    return causal_varlen(
        query, key, value, rows.queries, rows.keys, rows.max_queries, rows.max_keys, scale
    )


def causal_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    max_queries: int,
    max_keys: int,
    scale: float | None,
) -> Tensor:
    """[N, H, D] PyTorch's causal attention over rows side by side, the last query at the last key.

    Args:
        queries, keys: as in `packing.Varlen`, with their maxima.
    """
    options: dict[str, Any] = {}
    if "enable_gqa" in VARLEN_OPTIONS:  # PyTorch 2.11 has no option for it, and just does it
        options = {"enable_gqa": query.shape[1] != key.shape[1]}
    attended = varlen_attn(
        query, key, value, queries, keys, max_queries, max_keys,
        scale=scale, window_size=(-1, 0), **options,
    )  # fmt: skip
    return cast(Tensor, attended)


# --- groups of padded segments ------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Segments of like length, padded on the right; some may be nothing but padding."""

    segments: int
    queries: int
    keys: int
    hidden: Tensor
    """[G or 1, 1, Q, C] bool: keys that a query does not see."""


@dataclass(frozen=True)
class Grouping:
    """How the N tokens of a layout get into its groups, head by head, and back.

    Tokens are rows of [N * H, D]; the padded tokens of all groups are rows of [M, D], group by
    group, each [G, H, Q]. Padding is filled with token 0.
    """

    groups: tuple[Group, ...]
    queries: Take
    keys: Take
    back: Take


@dataclass(frozen=True)
class Take:
    """Rows to take, and for the backward pass where each row went."""

    rows: Tensor
    """[M] int64."""
    went: Tensor
    """[N * copies] int64: a place that each row was taken to; anything where it was not."""
    copies: int = 1
    """Times that each row was taken by this way: heads of queries for one of keys."""
    nowhere: Tensor | None = None
    """Rows that were not taken."""
    again: Tensor | None = None
    """Rows that were taken to a second place, each once."""
    went_again: Tensor | None = None


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> Tensor:
    tokens, heads, size = query.shape
    grouping = _grouping(layout, heads, key.shape[1])
    split = [group.segments * heads * group.queries for group in grouping.groups]
    split_keys = [group.segments * heads * group.keys for group in grouping.groups]
    queries = torch.split(_take(query.reshape(-1, size), grouping.queries), split)
    keys = torch.split(_take(key.reshape(-1, size), grouping.keys), split_keys)
    values = torch.split(_take(value.reshape(-1, size), grouping.keys), split_keys)
    attended = [
        _attend(
            q.view(group.segments, heads, group.queries, size),
            k.view(group.segments, heads, group.keys, size),
            v.view(group.segments, heads, group.keys, size),
            group.hidden,
            scale,
        ).reshape(-1, size)
        for group, q, k, v in zip(grouping.groups, queries, keys, values, strict=True)
    ]
    return _take(torch.cat(attended), grouping.back).view(tokens, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    if query.device.type != "cpu" or key.shape[2] > MAX_KEYS:
        mask = ~hidden
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return cast(Tensor, cast(Any, _ShortAttention).apply(query, key, value, hidden, scale))


class _ShortAttention(torch.autograd.Function):
    """Attention that keeps its probabilities: [G, H, Q, D] of [G, H, Q, D] and [G, H, C, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float
    ) -> Tensor:
        shape = query.shape
        q = (query * scale).flatten(0, 1)
        k, v = key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(*shape[:3], -1).masked_fill_(hidden, float("-inf"))
        probabilities = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale, ctx.shapes = scale, (shape, key.shape)
        return torch.bmm(probabilities, v).view(shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, probabilities = ctx.saved_tensors
        shape, key_shape = ctx.shapes
        grad = upstream[0].reshape(q.shape)
        value_grad = torch.bmm(probabilities.transpose(1, 2), grad)
        grad = torch.ops.aten._softmax_backward_data(
            torch.bmm(grad, v.transpose(1, 2)), probabilities, -1, probabilities.dtype
        )
        query_grad = torch.bmm(grad, k).mul_(ctx.scale)
        key_grad = torch.bmm(grad.transpose(1, 2), q)
        return (
            query_grad.view(shape), key_grad.view(key_shape), value_grad.view(key_shape), None, None
        )  # fmt: skip


def _take(source: Tensor, take: Take) -> Tensor:
    return cast(Tensor, cast(Any, _TakeRows).apply(source, take))


class _TakeRows(torch.autograd.Function):
    """`source[rows]`, whose backward pass also takes rows: adding them up one by one is slow."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, take: Take) -> Tensor:
        ctx.take = take
        return source.index_select(0, take.rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        take: Take = ctx.take
        grad = upstream[0].index_select(0, take.went)
        if take.again is not None and take.went_again is not None:
            more = upstream[0].index_select(0, take.went_again)
            grad.index_copy_(0, take.again, grad.index_select(0, take.again).add_(more))
        if take.copies > 1:
            grad = grad.view(-1, take.copies, grad.shape[1]).sum(1)
        if take.nowhere is not None:
            grad.index_fill_(0, take.nowhere, 0)
        return grad, None


def _grouping(layout: Layout, heads: int, key_heads: int) -> Grouping:
    """Of a layout and a model; made once for all layers of a pass."""
    made = layout.__dict__.setdefault("groupings", {})
    if (heads, key_heads) not in made:
        made[heads, key_heads] = _group(layout, heads, key_heads)
    return cast(Grouping, made[heads, key_heads])


def _group(layout: Layout, heads: int, key_heads: int) -> Grouping:
    copies = heads // key_heads
    groups, query_rows, key_rows, query_pads = [], [], [], []
    for members in _like_lengths(layout.segments):
        queries = _round_up(max(s.tokens for s in members))
        keys = _round_up(max(s.keys for s in members))
        tokens = np.zeros((GROUP, queries), dtype=np.int64)
        pads = np.ones_like(tokens, dtype=bool)
        seen = np.full((GROUP, keys), -1, dtype=np.int64)
        for i, segment in enumerate(members):
            tokens[i, : segment.tokens] = range(segment.start, segment.start + segment.tokens)
            pads[i, : segment.tokens] = False
            seen[i, : segment.keys] = key_places(segment)
        prefixes = np.array([s.prefix for s in members] + [0] * (GROUP - len(members)))
        if (prefixes == prefixes[0]).all():
            prefixes = prefixes[:1]
        last = np.arange(queries)[None, :, None] + prefixes[:, None, None]
        hidden = torch.from_numpy(np.arange(keys)[None, None, :] > last)[:, None]
        groups.append(Group(GROUP, queries, keys, hidden.to(layout.kept.device)))
        query_rows.append(_by_head(tokens, heads))
        query_pads.append(np.repeat(pads[:, None], heads, 1).ravel())
        key_rows.append(_by_head(seen, heads))
    rows, pads = np.concatenate(query_rows), np.concatenate(query_pads)
    went = np.empty(layout.tokens * heads, dtype=np.int64)
    went[rows[~pads]] = np.flatnonzero(~pads)
    return Grouping(
        tuple(groups),
        Take(_tensor(rows, layout), _tensor(went, layout)),
        _take_of_keys(np.concatenate(key_rows), layout, heads, copies),
        Take(
            _tensor(went, layout),
            _tensor(rows, layout),
            nowhere=_some(np.flatnonzero(pads), layout),
        ),
    )


def _take_of_keys(rows: np.ndarray, layout: Layout, heads: int, copies: int) -> Take:
    """Args:
    rows: for each padded key, its token * heads + its head; negative on padding."""
    places = np.flatnonzero(rows >= 0)
    keys = rows[places]
    # Assignment keeps the last of several, which is the second place of a token seen twice.
    went = np.empty(layout.tokens * heads, dtype=np.int64)
    went[keys] = places
    first = places[went[keys] != places]
    again = rows[first]
    sources = np.where(rows >= 0, rows // copies, 0)
    return Take(
        _tensor(sources, layout),
        _tensor(went, layout),
        copies,
        again=_some(again, layout),
        went_again=_some(first, layout),
    )


def _by_head(tokens: np.ndarray, heads: int) -> np.ndarray:
    """[G * H * Q] rows of [N * H] for tokens [G, Q]; negative stays negative."""
    spread = tokens[:, None, :] * heads + np.arange(heads)[None, :, None]
    return np.where(tokens[:, None, :] < 0, -1, spread).ravel()


def _like_lengths(segments: Sequence[Segment]) -> list[list[Segment]]:
    """At most GROUP segments each of like length, those with and without a prefix apart."""
    groups = []
    for with_prefix in (False, True):
        family = [s for s in segments if (s.prefix > 0) == with_prefix]
        family.sort(key=lambda s: (-s.tokens, -s.keys, s.start))
        groups += [family[i : i + GROUP] for i in range(0, len(family), GROUP)]
    return groups


def _round_up(tokens: int) -> int:
    """To one of four sizes between a power of two and the next, 16 or more."""
    step = max(16, (1 << tokens.bit_length()) // 8)
    return -(-tokens // step) * step


def _tensor(values: np.ndarray, layout: Layout) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(layout.kept.device)


def _some(values: np.ndarray, layout: Layout) -> Tensor | None:
    return _tensor(values, layout) if len(values) else None


# --- for transformers ---------------------------------------------------------------------------


def _for_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Its `query` is [1, H, N, D]; the result is [1, N, H, D]."""
    if layout is None:
        return cast(
            tuple[Tensor, None],
            sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **options
            ),
        )
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(q, k, v, layout, scale)[None], None


AttentionInterface.register(NAME, _for_transformers)
AttentionMaskInterface.register(NAME, sdpa_mask)
