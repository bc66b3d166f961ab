"""DPO that is unbiased where a known share of the pairs is labelled the wrong way round.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import (
    PairLogProbs,
    PairLoss,
    PreferenceLoss,
    Smoothing,
    log_sigmoid,
)


class RobustDPO(PreferenceLoss):
    """Robust DPO (rDPO)."""

    loss_type: Literal["robust"] = "robust"
    beta: PositiveFloat = 0.1
    """Pull towards the reference policy, on log-ratios of whole completions: 0.01 to 0.5."""
    label_smoothing: Smoothing = 0.1
    """Share of pairs that is labelled the wrong way round."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return robust_dpo_loss(pairs, beta=self.beta, label_smoothing=self.label_smoothing)


def robust_dpo_loss(pairs: PairLogProbs, *, beta: float, label_smoothing: float) -> PairLoss:
    """[B] ((1 - e) * -log sigmoid(margin) - e * -log sigmoid(-margin)) / (1 - 2 e).

    Its mean over wrong and right labels is the plain loss of the right ones (Chowdhury et al. 2024,
    arXiv:2403.00409, eq. 12). A single loss may be negative.
    """
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    margins = chosen - rejected
    right, wrong = -log_sigmoid(margins), -log_sigmoid(-margins)
    losses = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return PairLoss(losses, chosen.detach(), rejected.detach())
