"""The training loop: one generator for every objective whose loss is a sum over rows.

Logging, checkpoints and progress stay with the caller, who is given one `StepMetrics` for each
optimiser step; a caller that stops asking stops the training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.training.lanes import Lanes
from caravan.training.optim import NonFiniteError, Updater

ROWS_NAMED = 8
"""Row ids listed in an error."""


class Batch(Protocol):
    """The rows of one pass."""

    @property
    def row_ids(self) -> tuple[str, ...]: ...

    @property
    def tokens(self) -> int:
        """Tokens without padding."""

    def to(self: B, device: torch.device) -> B: ...


B = TypeVar("B", bound=Batch)
BatchT = TypeVar("BatchT", bound=Batch, contravariant=True)


class PassLoss(NamedTuple):
    loss: Tensor
    """[] sum over the units of the pass."""
    sums: Mapping[str, float]
    """Other numbers to report, summed over the units of the pass."""


class Objective(Protocol[BatchT]):
    @property
    def mean(self) -> bool:
        """Divide the loss by the units of the whole optimiser step."""

    def units(self, batch: BatchT) -> int:
        """What the loss is a sum over: supervised tokens, or pairs."""

    def __call__(self, model: PreTrainedModel, batch: BatchT) -> PassLoss: ...


@dataclass(frozen=True)
class StepMetrics:
    step: int
    """Optimiser steps taken, this one included."""
    tokens: int
    """Tokens of the step, without padding."""
    values: Mapping[str, float]
    """`loss` and the objective's own numbers as means per unit, `learning_rate`, `grad_norm`."""


def train(
    model: PreTrainedModel,
    updater: Updater,
    passes: Callable[[int], Sequence[B]],
    objective: Objective[B],
    *,
    bf16: bool,
    lanes: int = 1,
    first_step: int = 0,
) -> Iterator[StepMetrics]:
    """Train `model` in place, yielding once per optimiser step.

    Args:
        passes: the passes of an optimiser step, by its number from 0.
        bf16: autocast to bfloat16.
        lanes: passes computed at once.

    Raises:
        NonFiniteError: a loss or a gradient is not finite; names the rows.
    """
    side_by_side = Lanes(model, lanes)
    for step in range(first_step, updater.schedule.total_steps):
        batches = passes(step)
        units = sum(objective.units(batch) for batch in batches)
        backward = partial(_backward, objective, updater, step, units, bf16)
        sums: Counter[str] = Counter()
        for of_pass in side_by_side.map(backward, batches):
            sums.update(of_pass)
        side_by_side.gather()
        try:
            update = updater.step(step)
        except NonFiniteError as error:
            ids = [row for batch in batches for row in batch.row_ids]
            raise NonFiniteError(f"{error}: {_name(ids)}") from error
        means = {name: total / units for name, total in sums.items()}
        yield StepMetrics(
            step + 1, sum(batch.tokens for batch in batches), {**means, **update._asdict()}
        )


def _backward(
    objective: Objective[B],
    updater: Updater,
    step: int,
    units: int,
    bf16: bool,
    model: PreTrainedModel,
    batch: B,
) -> dict[str, float]:
    """Add the gradients of one pass; gives its loss and the objective's own numbers, summed."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        loss, others = objective(model, batch.to(model.device))
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(
            f"step {step}: the loss is {value} on rows {_name(batch.row_ids)}; look at them, or "
            "lower learning_rate"
        )
    updater.backward(loss / units if objective.mean else loss)
    return {"loss": value, **others}


def _name(row_ids: Sequence[str]) -> str:
    more = len(row_ids) - ROWS_NAMED
    return ", ".join(row_ids[:ROWS_NAMED]) + (f" and {more} more" if more > 0 else "")
