"""Rewards of a reward model.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from caravan.training.logprobs import hidden_states


def end_token_rewards(model: PreTrainedModel, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """[B] float32 rewards, read at the last token of each row.

    Args:
        model: a sequence-classification model with one label, whose head is `score`.
        input_ids: [B, T], padded on the right.
        lengths: [B] tokens without padding.
    """
    hidden = hidden_states(model, input_ids)
    rows = torch.arange(len(lengths), device=lengths.device)
    ends = hidden[rows, lengths - 1].float()
    # The head is a single row: full precision costs nothing, and rewards are compared closely.
    with torch.autocast(input_ids.device.type, enabled=False):
        return F.linear(ends, model.score.weight.float()).squeeze(1)
