"""Models that are only read: the reference policy, a reward model that scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from caravan.training.parallel.ranks import spreads_weights


class Frozen:
    """A model that stays as it is, whole in this process."""

    def __init__(self, model: PreTrainedModel) -> None:
        # Of what can be trained autocast keeps copies in bf16.
        self.model: PreTrainedModel = model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where passes are computed."""
        device: torch.device = self.model.device
        return device

    def forward(self, run: Callable[[Any], Any], model: PreTrainedModel | None = None) -> Any:
        """`run(model)`, a pass without gradients. Ranks that share the weights take equally many.

        Args:
            model: its own, or a view of it.
        """
        with torch.no_grad():
            return run(self.model if model is None else model)


def freeze(model: PreTrainedModel, *, zero_stage: int, zero_offload: str) -> Frozen:
    """A placed model, spread over the ranks where those that are trained with `zero_stage` are."""
    if not spreads_weights(zero_stage):
        return Frozen(model)
    from caravan.training.parallel.zero import SpreadFrozen

    return SpreadFrozen(model, zero_offload)
