"""Log-probabilities of preference pairs under the reference policy: computed once, then read.

They depend on the model, the pairs and the length, not on the loss, its beta or the learning rate.
A sweep over those therefore shares them.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from caravan.errors import DataError
from caravan.interruption import StageStopped, hold_stops
from caravan.training.batching import TokenBatch
from caravan.training.frozen import Frozen
from caravan.training.logprobs import sum_rows, token_logprobs
from caravan.training.pairs import pair_passes
from caravan.training.parallel.ranks import current
from caravan.training.precision import autocast
from caravan.training.tokenize import PairRow

FILE = "reference.safetensors"
NO_REFERENCE = torch.empty(0)
"""In place of reference log-probabilities, for a loss that needs none."""


def reference_logprobs(
    reference: Frozen,
    rows: Sequence[PairRow],
    *,
    tokens_per_pass: int,
    bf16: bool,
    pad_token_id: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """[rows, 2] float32 log-probabilities, in nats, of the chosen and the rejected completions.

    One pass over all pairs, those of like length together; each rank takes a part of them, and all
    get all values.

    Raises:
        StageStopped: this process, or another rank, was asked to stop.
    """
    total = torch.zeros(len(rows) * 2)
    places = torch.arange(len(rows) * 2).view(-1, 2)
    ranks, device = current(), reference.device

    def of_batch(model: PreTrainedModel, sides: TokenBatch) -> Tensor:
        with autocast(device.type, bf16):
            values = token_logprobs(model, sides.input_ids, sides.loss_mask, sides.layout)
        return sum_rows(values, sides.loss_mask).cpu()

    own = ranks.share(range(len(rows)), [row.length for row in rows])
    # In place of reference log-probabilities, each pass is told where its own ones go. A rank that
    # has no pair left goes through one again: of shared weights all must take as many passes.
    passes = pair_passes(rows, places, tokens_per_pass, pad_token_id, own or range(len(rows))[:1])
    count = ranks.most(len(passes))
    with hold_stops() as stop:  # ranks stop after the same pass
        for number in range(count):
            batch = passes[min(number, len(passes) - 1)]
            values = reference.forward(partial(of_batch, sides=batch.sides.to(device)))
            if own:
                total[batch.reference] = values
            progress(number + 1, count)
            if ranks.any(stop.asked):
                raise StageStopped(stop.signal_number or signal.SIGTERM)
    ranks.add_up(total)
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
