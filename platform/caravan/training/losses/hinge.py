"""DPO with a hinge: pairs that are apart by the margin no longer pull.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import PairLogProbs, PairLoss, PreferenceLoss


class Hinge(PreferenceLoss):
    """Hinge loss on log-ratios of whole completions."""

    loss_type: Literal["hinge"] = "hinge"
    beta: PositiveFloat = 0.1
    """Inverse of the margin of log-ratios beyond which a pair has no loss."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return hinge_loss(pairs, beta=self.beta)


def hinge_loss(pairs: PairLogProbs, *, beta: float) -> PairLoss:
    """[B] max(0, 1 - beta * difference of the log-ratios of whole completions).

    SLiC on DPO's margin (Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657,
    table 1).
    """
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    losses = (1 - (chosen - rejected)).relu()
    return PairLoss(losses, chosen.detach(), rejected.detach())
