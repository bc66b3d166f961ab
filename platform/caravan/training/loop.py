"""The training loop: one generator for every objective whose loss is a sum over rows.

The loop of one process and the loop of many are the same: the sums of a step run over all ranks.

Logging, checkpoints and progress stay with the caller, who is given one `StepMetrics` for each
optimiser step; a caller that stops asking stops the training.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.errors import CaravanError, some
from caravan.training.lanes import Lanes
from caravan.training.optim import NonFiniteError, Updater
from caravan.training.parallel.ranks import current
from caravan.training.precision import autocast

logger = logging.getLogger(__name__)

ROWS_NAMED = 8
"""Row ids listed in an error."""


class Batch(Protocol):
    """The rows of one pass."""

    @property
    def row_ids(self) -> tuple[str, ...]: ...

    @property
    def tokens(self) -> int:
        """Tokens without padding."""

    @property
    def computed(self) -> int:
        """Tokens that go through the model."""

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""

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
class Pass(Generic[B]):
    batch: B
    counts: bool = True
    """False for a pass that only keeps this rank in step with others that have more to do."""

    @property
    def tokens(self) -> int:
        return self.batch.tokens if self.counts else 0


@dataclass(frozen=True)
class StepMetrics:
    step: int
    """Optimiser steps taken, this one included."""
    tokens: int
    """Tokens of the step's rows, without padding, on all ranks."""
    computed: int
    """Tokens that went through the model for them."""
    supervised: int
    """Tokens that were trained on."""
    values: Mapping[str, float]
    """`loss` and the objective's own numbers as means per unit, `learning_rate`, `grad_norm`."""
    skipped: bool = False
    """The loss or the gradient was not finite, and the weights were left as they were."""


def train(
    model: PreTrainedModel,
    updater: Updater,
    passes: Callable[[int], list[Pass[B]]],
    objective: Objective[B],
    *,
    bf16: bool,
    lanes: int = 1,
    first_step: int = 0,
    skip_non_finite: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepMetrics]:
    """Train `model` in place, yielding once per optimiser step.

    Args:
        passes: this rank's passes of an optimiser step, by its number from 0.
        bf16: autocast to bfloat16.
        lanes: passes computed at once.
        skip_non_finite: leave a step out whose loss or gradient is not finite.
        stop: asked before every step; when it says so on one rank, no rank takes a further step.

    Raises:
        NonFiniteError: a loss or a gradient is not finite; names the rows.
        CaravanError: a pass does not fit into the memory of the device.
    """
    side_by_side = Lanes(model, lanes)
    ranks = current()
    for step in range(first_step, updater.schedule.total_steps):
        own = passes(step)
        counted = [p.batch for p in own if p.counts]
        told = ranks.gather(
            [
                len(own),
                stop(),
                sum(map(objective.units, counted)),
                sum(batch.tokens for batch in counted),
                sum(batch.computed for batch in counted),
                sum(batch.supervised for batch in counted),
            ]
        )
        _, stopping, units, tokens, computed, supervised = map(sum, zip(*told, strict=True))
        if stopping:
            return
        # Ranks that share weights or gradients must make equally many passes.
        most = max(passes for passes, *_ in told)
        own += [replace(own[-1], counts=False)] * (most - len(own))
        refused: list[str] = []
        backward = partial(_backward, objective, updater, units, bf16, refused)
        sums: Counter[str] = Counter()
        for of_pass in side_by_side.map(backward, own):
            sums.update(of_pass)
        side_by_side.gather()
        means = {name: total / units for name, total in ranks.sums(sums).items()}
        try:
            update = updater.step(step)
        except NonFiniteError as error:
            named = ranks.collect(refused)
            problem = (
                f"step {step}: the loss is {means['loss']} on rows {some(named, ROWS_NAMED)}; look "
                "at them, or lower learning_rate"
            )
            if not named:
                named = ranks.collect([row for p in own if p.counts for row in p.batch.row_ids])
                problem = f"{error}: {some(named, ROWS_NAMED)}"
            if not skip_non_finite:
                raise NonFiniteError(problem) from error
            logger.warning("%s; the step is left out", problem)
            yield StepMetrics(step + 1, tokens, computed, supervised, means, skipped=True)
            continue
        values = {**means, **update._asdict()}
        yield StepMetrics(step + 1, tokens, computed, supervised, values)


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    updater: Updater,
    passes: Sequence[Pass[B]],
    objective: Objective[B],
    *,
    bf16: bool,
) -> dict[str, float]:
    """`loss` and the objective's own numbers as means per unit, over this rank's `passes` and those
    of all others; dropout is off."""
    ranks = current()
    most = ranks.most(len(passes))
    sums: Counter[str] = Counter()
    model.eval()
    for one in [*passes, *[replace(passes[-1], counts=False)] * (most - len(passes))]:
        batch = one.batch.to(model.device)
        with autocast(model.device.type, bf16):
            loss, others = updater.forward(partial(objective, batch=batch))
        numbers = {"loss": loss.item(), **others, "units": objective.units(batch)}
        sums.update(numbers if one.counts else dict.fromkeys(numbers, 0.0))
    model.train()
    totals = ranks.sums(sums)
    units = totals.pop("units")
    return {name: total / units for name, total in totals.items()}


def _backward(
    objective: Objective[B],
    updater: Updater,
    units: int,
    bf16: bool,
    refused: list[str],
    model: PreTrainedModel,
    one: Pass[B],
) -> dict[str, float]:
    """Add the gradients of one pass; gives its loss and the objective's own numbers, summed.

    Rows whose loss is not finite are put into `refused`, and the gradient is spoilt for all ranks.
    """
    batch = one.batch

    def run(model: PreTrainedModel) -> tuple[Tensor, Mapping[str, float]]:
        with autocast(model.device.type, bf16):
            loss, others = objective(model, batch.to(model.device))
        return loss, others

    try:
        loss, others = updater.forward(run, model)
        value = loss.item()
        if not math.isfinite(value):
            refused.extend(batch.row_ids)
            loss = loss * math.nan
        share = loss / units if objective.mean else loss
        updater.backward(share if one.counts else 0.0 * share)
    except torch.OutOfMemoryError as error:
        raise CaravanError(
            f"a pass of {len(batch.row_ids)} rows and {batch.tokens} tokens does not fit into the "
            "memory of the GPU; give tokens_per_pass a lower number (losses stay the same), set "
            "gradient_checkpointing, or raise zero_stage"
        ) from error
    numbers = {"loss": value, **others}
    return numbers if one.counts else dict.fromkeys(numbers, 0.0)
