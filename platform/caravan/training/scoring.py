"""Log-probabilities of whole rows under a policy that is not being trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.training.batching import TokenRow, collate, split_passes
from caravan.training.logprobs import sum_rows, token_logprobs
from caravan.training.precision import autocast


@torch.no_grad()
def row_logprobs(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    *,
    tokens_per_pass: int,
    bf16: bool,
    pad_token_id: int,
) -> Tensor:
    """[rows] float32 log-probabilities, in nats, of each row's supervised tokens; on the CPU."""
    total = torch.empty(len(rows))
    device, training = model.device, model.training
    model.eval()
    for cut in split_passes([row.length for row in rows], tokens_per_pass):
        batch = collate([rows[i] for i in cut], pad_token_id).to(device)
        with autocast(device.type, bf16):
            values = token_logprobs(model, batch.input_ids, batch.loss_mask, batch.layout)
        total[cut] = sum_rows(values, batch.loss_mask).cpu()
    model.train(training)
    return total
