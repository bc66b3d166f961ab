"""Odds-ratio preference optimisation: supervised fine-tuning and preferences in one, no reference.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat

from caravan.training.losses.preference import (
    PairLogProbs,
    PairLoss,
    PreferenceLoss,
    log_sigmoid,
)

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 1e-6
"""Nats: a mean log-probability above its negative is taken as this, where odds are infinite."""


class ORPO(PreferenceLoss):
    """ORPO; computes no reference log-probabilities."""

    needs_reference: ClassVar[bool] = False

    loss_type: Literal["orpo"] = "orpo"
    beta: PositiveFloat = 0.1
    """Weight of the odds ratio beside the cross entropy of the chosen completion; the paper's
    lambda."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        return orpo_loss(pairs, beta=self.beta)


def orpo_loss(pairs: PairLogProbs, *, beta: float) -> PairLoss:
    """[B] cross entropy per token of the chosen completion - beta * log sigmoid(log odds ratio).

    Hong et al. 2024 (arXiv:2403.07691, eq. 6 and 7), with the likelihood per token (geometric mean)
    as the probability. The cross entropy is that of the completion alone, and of each pair by
    itself; TRL adds the prompt's tokens and averages over all tokens of a pass.
    """
    chosen = pairs.policy_chosen / pairs.chosen_tokens
    rejected = pairs.policy_rejected / pairs.rejected_tokens
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    preference = log_sigmoid(log_odds)
    others = {
        "nll_loss": -chosen.detach(),
        "log_odds_chosen": log_odds.detach(),
        "log_odds_ratio": preference.detach(),
    }
    return PairLoss(
        -chosen - beta * preference, beta * chosen.detach(), beta * rejected.detach(), others
    )


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprobs)."""
    below = logprobs.clamp(max=-CERTAIN)
    return below - (-below.expm1()).log()
