"""AdamW, learning-rate schedules and the optimiser step.

`Updater` is the seam between the loop and what takes the step: the loop calls `forward` and
`backward` for each pass and `step` once, and does not know how gradients are gathered or where the
optimiser lives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from caravan.errors import CaravanError
from caravan.recipe import TrainingConfig
from caravan.training.checkpoint import State, TrainingState, own_tensors
from caravan.training.parallel.ranks import current

Scheduler = Literal["linear", "cosine", "constant"]
BUCKET_ELEMENTS = 16_000_000
"""Gradients summed over ranks at once."""


class NonFiniteError(CaravanError):
    """A loss or a gradient is infinite or not a number."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every optimiser step, as a pure function of its number.

    Warm-up reaches the full rate in its last step and starts above 0: transformers' schedules begin
    at exactly 0, which makes the first step a wasted one.
    """

    learning_rate: float
    total_steps: int
    kind: Scheduler = "linear"
    warmup_ratio: float = 0.0

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup_ratio * self.total_steps)

    def at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        warmup = self.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.kind == "constant":
            return self.learning_rate
        left = max(0.0, (self.total_steps - step) / max(1, self.total_steps - warmup))
        if self.kind == "linear":
            return self.learning_rate * left
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))


class Update(NamedTuple):
    learning_rate: float
    grad_norm: float
    """Before clipping."""


class Updater:
    """AdamW with clipped gradients over the parameters of one model, in one process."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        name: str = "policy",
    ) -> None:
        """`name` is what checkpoints call the model."""
        self.model = model
        self.name = name
        self.schedule = schedule
        self.optimizer = adamw(model, schedule.learning_rate, weight_decay, betas, epsilon)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._max_grad_norm = max_grad_norm

    def forward(self, run: Callable[[Any], Any], model: nn.Module | None = None) -> Any:
        """`run(model)`, a pass whose loss `backward` will be given.

        Args:
            model: the updater's own, or a view of it with gradients of its own.
        """
        return run(self.model if model is None else model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, step: int) -> Update:
        """Take optimiser step `step` with the gradients added since the last one.

        Raises:
            NonFiniteError: a gradient is not finite; the weights are as they were, and the
                gradients are dropped.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise unusable_gradient(step, norm)
        learning_rate = self.schedule.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Update(learning_rate, norm)

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """The model's weights by name, each whole while it is looked at; every rank asks for all
        of them."""
        for name, parameter in self.model.named_parameters():
            with self._whole(parameter):
                yield name, parameter.detach()

    def write_to(self, copy: nn.Module) -> None:
        """Give a copy of the model, of any precision, the weights as they are; every rank does."""
        with torch.no_grad():
            for (_, own), other in zip(self.each_weight(), copy.parameters(), strict=True):
                other.copy_(own)

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Inside, the parameter is whole on every rank."""
        return nullcontext()

    def weights(self) -> Mapping[str, Tensor]:
        """The model's own, whole, by name; every rank asks, and the leading one gets them."""
        return own_tensors(self.model)

    def state(self) -> State:
        """What a checkpoint keeps."""
        return TrainingState({self.name: self.model}, {self.name: self.optimizer})

    def finish(self) -> None:
        """Make the leader's model a plain one with its whole weights; no step follows."""


class ReplicatedUpdater(Updater):
    """The same on every rank, each with the whole model: gradients are summed before the step."""

    def step(self, step: int) -> Update:
        for bucket in _buckets([p for p in self._parameters if p.grad is not None]):
            gradients = [p.grad for p in bucket if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, summed in zip(
                gradients, torch.split_with_sizes(flat, sizes), strict=True
            ):
                gradient.copy_(summed.view_as(gradient))
        return super().step(step)


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(p.numel() for p in bucket) >= BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def unusable_gradient(step: int, norm: float) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: the gradient norm is {norm}; the weights were not changed. "
        "Lower learning_rate, or look at the rows of this step"
    )


def updater_for(
    model: nn.Module,
    config: TrainingConfig,
    total_steps: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    name: str = "policy",
) -> Updater:
    """The updater that a stage's config asks for, on the ranks that there are.

    Args:
        name: what checkpoints call the model.
    """
    schedule = Schedule(
        config.learning_rate, total_steps, config.lr_scheduler_type, config.warmup_ratio
    )
    if current().count > 1 and config.zero_stage > 0:
        from caravan.training.parallel.zero import ZeroUpdater

        return ZeroUpdater(model, schedule, config, betas, name)
    kind = Updater if current().count == 1 else ReplicatedUpdater
    return kind(
        model,
        schedule,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        betas=betas,
        epsilon=config.adam_epsilon,
        name=name,
    )


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.optim.AdamW:
    """AdamW in its fused form; matrices decay, norms and biases do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
