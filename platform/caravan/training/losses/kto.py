"""Kahneman-Tversky optimisation: each completion on its own is desirable or not.

A pair is one desirable and one undesirable completion. Both are held against a common reference
point, the divergence of the policy from the reference policy. That is estimated, as in the paper,
on prompts with completions that do not belong to them; `caravan.training.divergence` does so.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import PairLogProbs, PairLoss, PreferenceLoss


class KTO(PreferenceLoss):
    """KTO on pairs."""

    needs_divergence: ClassVar[bool] = True

    loss_type: Literal["kto"] = "kto"
    beta: PositiveFloat = 0.1
    """Risk aversion, on log-ratios of whole completions: 0.01 to 0.5."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of the chosen completions."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of the rejected completions. The data has as many of either."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return kto_loss(
            pairs,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )


def kto_loss(
    pairs: PairLogProbs,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> PairLoss:
    """[B] mean over both sides of weight * (1 - sigmoid(+-beta * (log-ratio - divergence))).

    Ethayarajh et al. 2024 (arXiv:2402.01306, eq. 8). The mean over the completions of a pair makes
    it the loss of TRL, which averages over the same completions unpaired.
    """
    assert pairs.divergence is not None
    reference_point = pairs.divergence.clamp(min=0)
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    origin = beta * reference_point
    desirable = desirable_weight * (1 - (chosen - origin).sigmoid())
    undesirable = undesirable_weight * (1 - (origin - rejected).sigmoid())
    others = {"kl": reference_point.expand_as(chosen)}
    return PairLoss((desirable + undesirable) / 2, chosen.detach(), rejected.detach(), others)
