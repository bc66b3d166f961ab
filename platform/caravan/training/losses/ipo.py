"""Identity preference optimisation: a target for the margin, instead of pushing it for ever.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import PairLogProbs, PairLoss, PreferenceLoss


class IPO(PreferenceLoss):
    """IPO on log-ratios per token."""

    loss_type: Literal["ipo"] = "ipo"
    beta: PositiveFloat = 0.1
    """The paper's tau: the margin of log-ratios per token is drawn towards 1 / (2 beta)."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return ipo_loss(pairs, beta=self.beta)


def ipo_loss(pairs: PairLogProbs, *, beta: float) -> PairLoss:
    """[B] (difference of the log-ratios - 1 / (2 beta)) squared.

    Azar et al. 2023 (arXiv:2310.12036, eq. 17). The log-ratios are means per token, not sums: the
    square would grow with the length. TRL does so too, after asking the authors.
    """
    chosen = pairs.chosen_ratio / pairs.chosen_tokens
    rejected = pairs.rejected_ratio / pairs.rejected_tokens
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return PairLoss(losses, beta * chosen.detach(), beta * rejected.detach())
