"""The loss of reward models.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caravan.training.losses.preference import log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, centering: float = 0.0) -> Tensor:
    """[B] -log sigmoid(chosen - rejected) + centering * (chosen + rejected) squared.

    The first term is the negative log-likelihood of the preferences under the Bradley-Terry model
    (Ouyang et al. 2022, arXiv:2203.02155, eq. 1), which leaves the mean reward free; the second
    draws it to 0 (Eisenstein et al. 2023, arXiv:2312.09244, section 2).

    Args:
        chosen: [B] rewards.
        rejected: [B] rewards.
    """
    losses = -log_sigmoid(chosen - rejected)
    return losses + centering * (chosen + rejected) ** 2 if centering else losses
