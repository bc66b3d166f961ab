"""What the models say about completions: log-probabilities, entropies and values, token by token.

Shapes: B rows of a pass, T tokens of its longest row, S completion tokens of the pass, row by row,
N completions of a step, R tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caravan.training.batching import TokenBatch, TokenRow, collate, split_passes
from caravan.training.logprobs import before_head, hidden_before
from caravan.training.output_head import linear_logprobs, tokens_per_chunk
from caravan.training.parallel.ranks import current


class Pass(NamedTuple):
    """Rows that go through the models together."""

    indices: Tensor
    """[B] which rows they are."""
    batch: TokenBatch
    counts: bool = True
    """False for a pass that only keeps this rank in step with others that have more to do."""

    @property
    def tokens(self) -> int:
        """Without padding."""
        return self.batch.tokens


class PolicyTokens(NamedTuple):
    logprobs: Tensor
    """[S] in nats, at the sampling temperature, float32."""
    entropies: Tensor
    """[S] in nats, of the distribution each token was drawn from, detached."""


def passes(
    rows: Sequence[TokenRow],
    indices: Sequence[int],
    *,
    tokens_per_pass: int,
    pad_token_id: int,
    lanes: int = 1,
) -> list[Pass]:
    """This rank's part of the rows `indices`, those of similar length together.

    On every rank as many passes, some of which do not count, since ranks that share weights or
    gradients must take equally many.
    """
    if not indices:
        return []
    ranks = current()
    own = ranks.share(indices, [row.length for row in rows])
    taken = own or list(indices[:1])
    found = []
    for part in split_passes([rows[i].length for i in taken], tokens_per_pass, lanes=lanes):
        chosen = [taken[i] for i in part]
        batch = collate([rows[i] for i in chosen], pad_token_id)
        found.append(Pass(torch.tensor(chosen), batch, counts=bool(own)))
    missing = ranks.most(len(found)) - len(found)
    return found + [found[-1]._replace(counts=False)] * missing


def policy_tokens(
    model: PreTrainedModel, batch: TokenBatch, *, temperature: float, entropy: bool
) -> PolicyTokens:
    """Of every completion token, given what comes before it; entropies are 0 unless asked for."""
    before = before_head(model, batch.input_ids, batch.loss_mask, batch.layout)
    logprobs = linear_logprobs(*before, temperature=temperature)
    if not entropy:
        return PolicyTokens(logprobs, torch.zeros_like(logprobs))
    return PolicyTokens(logprobs, _entropies(before.hidden, before.head, temperature))


@torch.no_grad()
def _entropies(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    parts = []
    for chunk in torch.split(hidden, tokens_per_chunk(weight)):
        log_probs = ((chunk @ weight.T).float() / temperature).log_softmax(-1)
        parts.append(-(log_probs.exp() * log_probs).sum(-1))
    return torch.cat(parts)


def values_before(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """[S] float32: the value of the state in which each completion token was chosen.

    Args:
        model: A sequence-classification model with one label, such as a reward model.
    """
    hidden = hidden_before(model, batch.input_ids, batch.loss_mask, batch.layout)
    head = cast(nn.Linear, model.score)
    # Multiplied out, because autocast would round the values to bfloat16.
    return (hidden.float() * head.weight[0].float()).sum(-1)


def scatter(target: Tensor, mask: Tensor, indices: Tensor, flat: Tensor) -> None:
    """Put [S] values of the rows `indices` into `target` [N, R], in place."""
    part = torch.zeros_like(target[indices])
    target[indices] = part.masked_scatter(mask[indices], flat.to(target))


def gather(source: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
    """[S] values of the rows `indices` of `source` [N, R]."""
    return source[indices][mask[indices]]
