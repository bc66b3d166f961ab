"""Simple preference optimisation: no reference policy, a margin that must be reached.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from caravan.training.losses.preference import (
    PairLogProbs,
    PairLoss,
    PreferenceLoss,
    Smoothing,
    smoothed,
)


class SimPO(PreferenceLoss):
    """SimPO; computes no reference log-probabilities."""

    needs_reference: ClassVar[bool] = False

    loss_type: Literal["simpo"] = "simpo"
    beta: PositiveFloat = 2.0
    """Scale of the rewards, which are log-probabilities per token: 2 to 10."""
    simpo_gamma: NonNegativeFloat = 1.0
    """Margin by which the chosen reward is to be larger; 0.3 to 1.6, the paper's gamma."""
    label_smoothing: Smoothing = 0.0
    """Share of pairs taken to be labelled the wrong way round."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return simpo_loss(
            pairs, beta=self.beta, gamma=self.simpo_gamma, label_smoothing=self.label_smoothing
        )


def simpo_loss(
    pairs: PairLogProbs, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> PairLoss:
    """[B] -log sigmoid(beta * difference of the log-probabilities per token - gamma).

    Meng et al. 2024 (arXiv:2405.14734, eq. 6).
    """
    chosen = beta * pairs.policy_chosen / pairs.chosen_tokens
    rejected = beta * pairs.policy_rejected / pairs.rejected_tokens
    losses = smoothed(chosen - rejected - gamma, label_smoothing)
    return PairLoss(losses, chosen.detach(), rejected.detach())
