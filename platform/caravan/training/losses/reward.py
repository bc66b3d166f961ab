"""The loss of reward models.

Shapes: B preference pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[B] -log sigmoid(chosen - rejected) of the rewards [B] of both sides.

    The negative log-likelihood of the preferences under the Bradley-Terry model (Ouyang et al.
    2022, arXiv:2203.02155, eq. 1).
    """
    return -F.logsigmoid(chosen - rejected)
