"""Rewards of a reward model.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from caravan.training.logprobs import hidden_at
from caravan.training.packing import Layout


def end_token_rewards(
    model: PreTrainedModel, input_ids: Tensor, lengths: Tensor, layout: Layout | None = None
) -> Tensor:
    """[B] float32 rewards, read at the last token of each row.

    Args:
        model: a sequence-classification model with one label, whose head is `score`.
        input_ids: [B, T], padded on the right.
        lengths: [B] tokens without padding.
        layout: of the rows; None computes the padding too.
    """
    columns = torch.arange(input_ids.shape[1], device=lengths.device)
    ends = hidden_at(model, input_ids, columns == lengths[:, None] - 1, layout).float()
    # The head is a single row: full precision costs nothing, and rewards are compared closely.
    with torch.autocast(input_ids.device.type, enabled=False):
        return F.linear(ends, model.score.weight.float()).squeeze(1)
