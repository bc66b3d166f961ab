"""The passes of an optimiser step side by side, each on a core of its own.

The operators of a small model take a fraction of a millisecond: shared among threads, they wait for
each other about as long as they compute. A lane computes whole passes with one thread and gradients
of its own, so lanes wait for each other once a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from caravan.training.batching import split_ranks


class Sized(Protocol):
    @property
    def tokens(self) -> int: ...


M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=Sized)
R = TypeVar("R")


class Lanes(Generic[M]):
    """`count` views of one model: the same weights in memory, gradients of their own."""

    def __init__(self, model: M, count: int) -> None:
        self.models = [model, *(_twin(model) for _ in range(count - 1))]
        _prepare_functions()
        self._pool = (
            ThreadPoolExecutor(count, "caravan-lane", partial(torch.set_num_threads, 1))
            if count > 1
            else None
        )

    def map(self, run: Callable[[M, B], R], batches: Sequence[B]) -> list[R]:
        """`run(model, batch)` for every batch, in order.

        Which lane takes a batch depends on the batches alone, so equal steps give equal sums.
        """
        if self._pool is None:
            return [run(self.models[0], batch) for batch in batches]
        shares = split_ranks([batch.tokens for batch in batches], len(self.models))
        results: dict[int, R] = {}

        def travel(model: M, share: Sequence[int]) -> None:
            for index in share:
                results[index] = run(model, batches[index])

        for lane in [
            self._pool.submit(travel, *lane) for lane in zip(self.models, shares, strict=True)
        ]:
            lane.result()
        return [results[index] for index in range(len(batches))]

    def gather(self) -> None:
        """Add the gradients of all lanes to those of the model itself."""
        own = list(self.models[0].parameters())
        for twin in self.models[1:]:
            for parameter, other in zip(own, twin.parameters(), strict=True):
                if parameter.grad is None:
                    parameter.grad = other.grad
                elif other.grad is not None:
                    parameter.grad += other.grad
                other.grad = None


def lanes_on(device: torch.device, cpus: int) -> int:
    """How many passes to compute at once: one for each core, or one on an accelerator."""
    return cpus if device.type == "cpu" else 1


def _prepare_functions() -> None:
    """Let MKL choose its vector functions while there is one thread.

    It chooses at the first call of any of them; of two threads that make it at once, one may get
    functions of low accuracy for that call: cosines off by 1e-4, in one of some thousand processes.
    """
    torch.ones(1).sqrt()


def _twin(model: M) -> M:
    """A copy of the modules around the same weights."""
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, shared)
