"""Length-normalised DPO, the preference loss of Tülu 3.

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

SMALL_BETA = 1.0
"""A beta below it was probably meant for log-ratios of whole completions."""


class LengthNormalisedDPO(PreferenceLoss):
    """DPO on log-ratios per token."""

    loss_type: Literal["sigmoid_norm", "dpo_norm"] = "sigmoid_norm"
    beta: PositiveFloat = 5.0
    """Pull towards the reference policy, on log-ratios per token: 5 in Tülu 3, about fifty times
    that of plain DPO."""
    label_smoothing: Smoothing = 0.0
    """Share of pairs taken to be labelled the wrong way round (conservative DPO)."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return length_normalised_dpo_loss(
            pairs, beta=self.beta, label_smoothing=self.label_smoothing
        )

    def doubts(self) -> Iterator[str]:
        if self.beta < SMALL_BETA:
            yield (
                f"beta: {self.beta:g} looks like a beta of plain DPO; with loss_type "
                f"{self.loss_type} it acts on log-ratios per token, where Tülu 3 uses 5; set "
                "beta: 5, or loss_type: sigmoid"
            )


def length_normalised_dpo_loss(
    pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0
) -> PairLoss:
    """[B] -log sigmoid(beta * difference of the log-ratios per token).

    Lambert et al. 2024 (arXiv:2411.15124, section 5.1.2, eq. 6).
    """
    chosen = beta * pairs.chosen_ratio / pairs.chosen_tokens
    rejected = beta * pairs.rejected_ratio / pairs.rejected_tokens
    losses = smoothed(chosen - rejected, label_smoothing)
    return PairLoss(losses, chosen.detach(), rejected.detach())
