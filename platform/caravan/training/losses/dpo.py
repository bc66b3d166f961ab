"""Direct preference optimisation.

Adding a loss is a function here and a line in `DPO_LOSSES`.

Shapes: B preference pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PairLogProbs(NamedTuple):
    """Of the completions of B pairs, prompts left out, end tokens counted."""

    policy_chosen: Tensor
    """[B] log-probability of the whole completion, in nats."""
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """[B] length of the completion."""
    rejected_tokens: Tensor


class PairLoss(NamedTuple):
    losses: Tensor
    """[B]."""
    chosen_rewards: Tensor
    """[B] implicit reward, detached."""
    rejected_rewards: Tensor


def dpo_loss(pairs: PairLogProbs, *, beta: float) -> PairLoss:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7): -log sigmoid(beta * difference of the
    log-ratios of whole completions). A usual `beta` is 0.1.
    """
    chosen = beta * (pairs.policy_chosen - pairs.reference_chosen)
    rejected = beta * (pairs.policy_rejected - pairs.reference_rejected)
    return PairLoss(-F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())


def length_normalised_dpo_loss(pairs: PairLogProbs, *, beta: float) -> PairLoss:
    """DPO on log-ratios per token, as Tülu 3 (arXiv:2411.15124, section 5.1.2, eq. 6).

    Because the margin is per token, `beta` is about fifty times that of `dpo_loss`: 5.
    """
    chosen = beta * (pairs.policy_chosen - pairs.reference_chosen) / pairs.chosen_tokens
    rejected = beta * (pairs.policy_rejected - pairs.reference_rejected) / pairs.rejected_tokens
    return PairLoss(-F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())


DPO_LOSSES: Mapping[str, Callable[..., PairLoss]] = {
    "sigmoid_norm": length_normalised_dpo_loss,
    "dpo_norm": length_normalised_dpo_loss,
    "sigmoid": dpo_loss,
    "dpo": dpo_loss,
}
"""By `loss_type` of the recipe."""
