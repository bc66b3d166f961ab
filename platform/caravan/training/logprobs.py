"""What a model says about given tokens: only what stands before them goes through the output head.

Shapes: B rows, T tokens, S supervised tokens of all rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from caravan.training.attention import attends_packed
from caravan.training.output_head import linear_logprobs
from caravan.training.packing import Layout


class Before(NamedTuple):
    """Supervised tokens, and what says how likely they are."""

    hidden: Tensor
    """[S, H] last hidden states in front of them."""
    head: Tensor
    """[V, H] weights of the output head."""
    tokens: Tensor
    """[S] int64."""


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    loss_mask: Tensor,
    layout: Layout | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """[S] float32 log-probabilities, in nats, of the tokens where `loss_mask` holds, row by row.

    Args:
        input_ids: [B, T], padded on the right.
        loss_mask: [B, T] bool. The first column is ignored: nothing comes before it.
        layout: of the rows; None computes the padding too.
        temperature: divides the logits, as in sampling.
    """
    return linear_logprobs(
        *before_head(model, input_ids, loss_mask, layout), temperature=temperature
    )


def before_head(
    model: PreTrainedModel, input_ids: Tensor, loss_mask: Tensor, layout: Layout | None = None
) -> Before:
    """Of the tokens where `loss_mask` holds, row by row; arguments as above."""
    hidden = hidden_before(model, input_ids, loss_mask, layout)
    head = cast(nn.Linear, model.get_output_embeddings())
    return Before(hidden, head.weight, input_ids[:, 1:][loss_mask[:, 1:]])


def hidden_before(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, layout: Layout | None = None
) -> Tensor:
    """[S, H] last hidden states in front of the tokens where `mask` [B, T] holds, row by row."""
    return hidden_at(model, input_ids, F.pad(mask[:, 1:], (0, 1)), layout)


def hidden_at(
    model: PreTrainedModel, input_ids: Tensor, places: Tensor, layout: Layout | None = None
) -> Tensor:
    """[S, H] last hidden states where `places` [B, T] holds, row by row."""
    if layout is None or not attends_packed(model):
        # No attention mask: causal attention keeps the padding out, and the kernels are faster.
        output = model.base_model(inputs_embeds=_embedded(model, input_ids), use_cache=False)
        return cast(Tensor, output.last_hidden_state[places])
    output = model.base_model(
        inputs_embeds=_embedded(model, input_ids.flatten()[layout.kept][None]),
        position_ids=layout.positions[None],
        # A mask of four dimensions is handed on as it is: none is made, and none is used.
        attention_mask=input_ids.new_empty(1, 1, 1, 1),
        use_cache=False,
        layout=layout,
    )
    return cast(Tensor, output.last_hidden_state[0].index_select(0, layout.found[places]))


def _embedded(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """[B, T, H] what layers add to, in the precision that they compute in on a GPU: float32 between
    them would double what moves through its memory, which takes as long as the products do."""
    embedded = cast(Tensor, model.get_input_embeddings()(input_ids))
    if embedded.is_cuda and torch.is_autocast_enabled("cuda"):
        return embedded.to(torch.get_autocast_dtype("cuda"))
    return embedded


def to_rows(values: Tensor, loss_mask: Tensor) -> Tensor:
    """[B, T - 1] the values [S] of `token_logprobs` in their places, 0 elsewhere."""
    places = loss_mask[:, 1:]
    return values.new_zeros(places.shape).masked_scatter(places, values)


def sum_rows(values: Tensor, loss_mask: Tensor) -> Tensor:
    """[B] sums over each row's supervised tokens."""
    return to_rows(values, loss_mask).sum(dim=1)
