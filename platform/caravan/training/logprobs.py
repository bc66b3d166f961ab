"""Log-probabilities of given tokens, without ever holding the logits of a whole pass.

Only the hidden states in front of supervised tokens go through the output head, a chunk at a time;
the backward pass computes the chunk's logits again instead of keeping them.

Shapes: B rows, T tokens, S supervised tokens of all rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from caravan.training.attention import attends_packed
from caravan.training.kernels import can_compile, fused, logits_gradient, pick_logits
from caravan.training.packing import WHOLE_TOKENS, Layout

Formula = Callable[..., Any]

LOGITS_PER_CHUNK = 1 << 21
"""Float32 logits held at once: 8 MiB, about what stays in a core's share of the cache."""
LOGITS_PER_CHUNK_ON_GPU = 1 << 28
"""The same on a GPU, enough rows to keep its matrix units busy: half a GiB in bfloat16."""


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
    head = cast(nn.Linear, model.get_output_embeddings())
    return linear_logprobs(
        hidden_before(model, input_ids, loss_mask, layout),
        head.weight,
        input_ids[:, 1:][loss_mask[:, 1:]],
        temperature=temperature,
    )


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


def linear_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """[S] float32 log-softmax(hidden @ weight.T / temperature) at `labels`.

    Args:
        hidden: [S, H].
        weight: [V, H] of the output head.
        labels: [S] int64.
    """
    tokens, device = len(labels), hidden.device.type
    if filler := -tokens % WHOLE_TOKENS:  # a round number, as in the rest of the pass
        hidden, labels = F.pad(hidden, (0, 0, 0, filler)), F.pad(labels, (0, filler))
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    apply = cast(Any, _LinearLogProbs).apply
    result = apply(hidden, weight, labels, temperature)
    return cast(Tensor, result[:tokens])


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        chosen = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(chosen)
        pick = _of_device(weight, pick_logits, _pick_logits)
        for rows in _chunks(len(labels), weight):
            logits = hidden[rows] @ weight.T
            chosen[rows], normaliser[rows] = pick(logits, labels[rows], temperature)
        ctx.save_for_backward(hidden, weight, labels, normaliser)
        ctx.temperature = temperature
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, labels, normaliser = ctx.saved_tensors
        scale = upstream[0] / ctx.temperature
        gradient = _of_device(weight, logits_gradient, _logits_gradient)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(len(labels), weight):
            logits = hidden[rows] @ weight.T
            grad = gradient(logits, labels[rows], normaliser[rows], scale[rows], ctx.temperature)
            hidden_grad[rows] = grad @ weight
            weight_grad += grad.T @ hidden[rows]
        return hidden_grad, weight_grad.to(weight.dtype), None, None


def _of_device(weight: Tensor, on_gpu: Formula, elsewhere: Formula) -> Formula:
    return fused(on_gpu) if weight.is_cuda and can_compile() else elsewhere


# What `kernels` fuses on a GPU, for a CPU: in place, as it has no kernel that does all at once.


def _pick_logits(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = _scaled(logits, temperature)
    return scaled.gather(1, labels[:, None]).squeeze(1), torch.logsumexp(scaled, dim=1)


def _logits_gradient(
    logits: Tensor, labels: Tensor, normaliser: Tensor, scale: Tensor, temperature: float
) -> Tensor:
    grad = _scaled(logits, temperature).sub_(normaliser[:, None]).exp_().mul_(-scale[:, None])
    return grad.scatter_add_(1, labels[:, None], scale[:, None]).to(logits.dtype)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def tokens_per_chunk(weight: Tensor) -> int:
    """How many tokens' logits are held at once, for an output head [V, H]."""
    logits = LOGITS_PER_CHUNK_ON_GPU if weight.is_cuda else LOGITS_PER_CHUNK
    return max(1, logits // len(weight))


def _chunks(tokens: int, weight: Tensor) -> list[slice]:
    size = tokens_per_chunk(weight)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
