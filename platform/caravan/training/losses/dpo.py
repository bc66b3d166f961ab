"""Direct preference optimisation.

Shapes: B preference pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import (
    PairLogProbs,
    PairLoss,
    PreferenceLoss,
    Smoothing,
    smoothed,
)

LARGE_BETA = 1.0


class DPO(PreferenceLoss):
    """Plain DPO: log-ratios of whole completions."""

    loss_type: Literal["sigmoid", "dpo"] = "sigmoid"
    beta: PositiveFloat = 0.1
    """Pull towards the reference policy, on log-ratios of whole completions: 0.01 to 0.5."""
    label_smoothing: Smoothing = 0.0
    """Share of pairs taken to be labelled the wrong way round (conservative DPO)."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return dpo_loss(pairs, beta=self.beta, label_smoothing=self.label_smoothing)

    def doubts(self) -> Iterator[str]:
        if self.beta >= LARGE_BETA:
            yield (
                f"beta: {self.beta:g} looks like a beta of length-normalised DPO; with "
                f"loss_type {self.loss_type} it acts on log-ratios of whole completions, where "
                "0.1 is usual; set beta: 0.1, or loss_type: sigmoid_norm"
            )


def dpo_loss(pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0) -> PairLoss:
    """[B] -log sigmoid(beta * difference of the log-ratios of whole completions).

    Rafailov et al. 2023 (arXiv:2305.18290, eq. 7).
    """
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    losses = smoothed(chosen - rejected, label_smoothing)
    return PairLoss(losses, chosen.detach(), rejected.detach())
