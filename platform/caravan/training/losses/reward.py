"""The loss of reward models.

Shapes: B preference pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caravan.training.losses.preference import log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | float = 0.0, *, centering: float = 0.0
) -> Tensor:
    """[B] -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) squared.

    Without margin and centering it is the negative log-likelihood of the preferences under the
    Bradley-Terry model (Ouyang et al. 2022, arXiv:2203.02155, eq. 1). A margin asks for more where
    the preference is clearer (Touvron et al. 2023, arXiv:2307.09288, eq. 2). The preferences leave
    the mean reward free; centering draws it to 0 (Eisenstein et al. 2023, arXiv:2312.09244,
    section 2).

    Args:
        chosen: [B] rewards.
        rejected: [B] rewards.
        margins: [B], or one for all.
    """
    losses = -log_sigmoid(chosen - rejected - margins)
    return losses + centering * (chosen + rejected) ** 2 if centering else losses
