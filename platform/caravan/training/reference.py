"""Log-probabilities of preference pairs under the reference policy: computed once, then read.

They depend on the model, the pairs and the length, not on the loss, its beta or the learning rate.
A sweep over those therefore shares them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from caravan.errors import DataError
from caravan.training.logprobs import sum_rows, token_logprobs
from caravan.training.pairs import pair_passes
from caravan.training.precision import autocast
from caravan.training.tokenize import PairRow

FILE = "reference.safetensors"
NO_REFERENCE = torch.empty(0)
"""In place of reference log-probabilities, for a loss that needs none."""


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel,
    rows: Sequence[PairRow],
    *,
    tokens_per_pass: int,
    bf16: bool,
    pad_token_id: int,
) -> Tensor:
    """[rows, 2] float32 log-probabilities, in nats, of the chosen and the rejected completions.

    One pass over all pairs, those of like length together.
    """
    total = torch.empty(len(rows) * 2)
    places = torch.arange(len(rows) * 2).view(-1, 2)
    device, training = model.device, model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)  # of what can be trained autocast keeps copies in bf16
    # In place of reference log-probabilities, each pass is told where its own ones go.
    for batch in pair_passes(rows, places, tokens_per_pass, pad_token_id, range(len(rows))):
        sides = batch.sides.to(device)
        with autocast(device.type, bf16):
            values = token_logprobs(model, sides.input_ids, sides.loss_mask, sides.layout)
        total[batch.reference] = sum_rows(values, sides.loss_mask).cpu()
    model.train(training)
    for parameter in trained:
        parameter.requires_grad_(True)
    return total.view(-1, 2)


def save_reference(directory: Path, rows: Sequence[PairRow], logprobs: Tensor) -> None:
    """Write what `reference_logprobs` gave for `rows`."""
    save_file({"logprobs": logprobs}, directory / FILE, metadata={"rows": _digest(rows)})


def load_reference(directory: Path, rows: Sequence[PairRow]) -> Tensor:
    """[rows, 2] what `save_reference` wrote.

    Raises:
        DataError: it was written for other rows.
    """
    with safe_open(directory / FILE, framework="pt") as file:
        if (file.metadata() or {}).get("rows") != _digest(rows):
            raise DataError(
                f"{directory}: these reference log-probabilities are of other pairs, or of pairs "
                "cut at another max_length; run the stage `reference` on these"
            )
        return torch.as_tensor(file.get_tensor("logprobs"))


def _digest(rows: Sequence[PairRow]) -> str:
    """Of the ids of all tokens, in order."""
    digest = hashlib.sha256()
    for row in rows:
        sides = [list(side.input_ids) for side in (row.chosen, row.rejected)]
        digest.update(repr((row.id, sides)).encode())
    return digest.hexdigest()
