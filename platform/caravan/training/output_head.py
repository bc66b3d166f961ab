"""The output head: what it says of given tokens, without ever holding the logits of a whole pass.

A chunk of hidden states goes through it at a time. What the loss weighs token by token, which is
known in the backward pass only, computes each chunk's logits again there; a plain sum of losses
has its gradients computed while the logits are at hand.

Shapes: S tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.training.kernels import can_compile, fused, logits_gradient, pick_logits
from caravan.training.packing import WHOLE_TOKENS

Formula = Callable[..., Any]

LOGITS_PER_CHUNK = 1 << 21
"""Float32 logits held at once: 8 MiB, about what stays in a core's share of the cache."""
LOGITS_PER_CHUNK_ON_GPU = 1 << 28
"""The same on a GPU, enough rows to keep its matrix units busy: half a GiB in bfloat16."""


def linear_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """[S] float32 log-softmax(hidden @ weight.T / temperature) at `labels`.

    Args:
        hidden: [S, H].
        weight: [V, H] of the output head.
        labels: [S] int64.
    """
    tokens = len(labels)
    hidden, weight, labels = _prepared(hidden, weight, labels)
    result = cast(Any, _LinearLogProbs).apply(hidden, weight, labels, temperature)
    return cast(Tensor, result[:tokens])


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """[] float32 sum of -log-softmax(hidden @ weight.T) at `labels`; shapes as above."""
    if not torch.is_grad_enabled():  # and no gradient to compute beside it
        return -linear_logprobs(hidden, weight, labels).sum()
    tokens = len(labels)
    hidden, weight, labels = _prepared(hidden, weight, labels)
    return cast(Tensor, cast(Any, _LinearCrossEntropy).apply(hidden, weight, labels, tokens))


def _prepared(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A round number of tokens, as in the rest of the pass, in the precision of the products."""
    if filler := -len(labels) % WHOLE_TOKENS:
        hidden, labels = F.pad(hidden, (0, 0, 0, filler)), F.pad(labels, (0, filler))
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return hidden, weight, labels


class _Gradients:
    """Of hidden states and of the head, as far as they are wanted, from those of logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: Sequence[bool]) -> None:
        of_hidden, of_weight, *_ = wanted
        self._dtype = hidden.dtype
        self._hidden = torch.empty_like(hidden) if of_hidden else None
        self._weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None

    def add(self, rows: slice, of_logits: Tensor, hidden: Tensor, weight: Tensor) -> None:
        if self._hidden is not None:
            self._hidden[rows] = of_logits @ weight
        if self._weight is not None:
            self._weight += of_logits.T @ hidden

    def result(self, scale: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Times `scale`, in the precision of the products."""
        return self._times(self._hidden, scale), self._times(self._weight, scale)

    def _times(self, total: Tensor | None, scale: Tensor | None) -> Tensor | None:
        if total is None:
            return None
        if scale is not None:
            # In float32: a scale in bfloat16 would be off by up to 0.4 %, the same way for all.
            total = total.float().mul_(scale)
        return total.to(self._dtype)


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
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, labels, normaliser = ctx.saved_tensors
        scale = upstream[0] / ctx.temperature
        gradient = _of_device(weight, logits_gradient, _logits_gradient)
        found = _Gradients(hidden, weight, ctx.needs_input_grad)
        for rows in _chunks(len(labels), weight):
            logits = hidden[rows] @ weight.T
            of_logits = gradient(
                logits, labels[rows], normaliser[rows], scale[rows], ctx.temperature
            )
            found.add(rows, of_logits, hidden[rows], weight)
        return *found.result(), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, tokens: int) -> Tensor:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        pick = _of_device(weight, pick_logits, _pick_logits)
        gradient = _of_device(weight, logits_gradient, _logits_gradient)
        scale = -torch.ones_like(losses)
        scale[tokens:] = 0
        found = _Gradients(hidden, weight, ctx.needs_input_grad)
        for rows in _chunks(len(labels), weight):
            logits = hidden[rows] @ weight.T
            chosen, normaliser = pick(logits, labels[rows], 1.0)
            losses[rows] = normaliser - chosen
            of_logits = gradient(logits, labels[rows], normaliser, scale[rows], 1.0)
            found.add(rows, of_logits, hidden[rows], weight)
        ctx.found = found
        return losses[:tokens].sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        found, ctx.found = ctx.found, None  # scaled in place, so not to be used twice
        return *found.result(upstream[0]), None, None


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
