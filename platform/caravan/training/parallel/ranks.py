"""The processes that train together, and the little that they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from caravan.training.batching import split_ranks

T = TypeVar("T")

NODE_VARIABLE = "CARAVAN_NODE_RANK"
"""Number of the node among those of a job, given to its ranks by the launcher."""

PATIENCE = timedelta(hours=6)
"""How long a rank waits for another; a lost one is noticed at once, by its broken connection."""


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes. Alone, every method answers without asking anybody."""

    rank: int = 0
    count: int = 1
    leader: int = 0
    """The rank that logs and writes: the first one of the node whose launcher waits for it."""
    local_rank: int = 0
    """Among those of this node."""
    local_count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == self.leader

    def share(self, rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This rank's part of the rows of a step, about as many tokens as every other's."""
        if self.count == 1:
            return list(rows)
        mine = split_ranks([lengths[row] for row in rows], self.count)[self.rank]
        return [rows[i] for i in mine]

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """The values of every rank, in order of ranks."""
        if self.count == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.int64)
        every = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(every, own)
        return [one.tolist() for one in every]

    def most(self, count: int) -> int:
        """The largest count of all ranks."""
        return max(most for (most,) in self.gather([count]))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on one rank at least."""
        return self.most(flag) > 0

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks, which give the same names."""
        if self.count == 1:
            return dict(values)
        total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(sorted(values), total.tolist(), strict=True))

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor, in the memory of the host, by its sum over all ranks."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def collect(self, values: Sequence[T]) -> list[T]:
        """The values of all ranks, in order of ranks."""
        if self.count == 1:
            return list(values)
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, list(values))
        return [value for of_rank in every for value in of_rank]

    def of_leader(self, value: T) -> T:
        """What the leading rank gives; the others' values are not looked at."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.leader)
        return box[0]

    def tensors_of_leader(self, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """The leading rank's tensors, in the memory of the host, each sent when it is asked for.

        All ranks must ask for the same ones in the same order.
        """
        if self.count == 1:
            assert tensors is not None
            return tensors
        return _Sent(self, tensors, self.of_leader(list(tensors or ())))

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather([0])


class _Sent(Mapping[str, Tensor]):
    def __init__(
        self, ranks: Ranks, tensors: Mapping[str, Tensor] | None, names: list[str]
    ) -> None:
        self._ranks, self._tensors, self._names = ranks, tensors, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        own = None if self._tensors is None else self._tensors[name].contiguous()
        described: Any = None if own is None else (own.shape, own.dtype)
        shape, dtype = self._ranks.of_leader(described)
        sent = own if own is not None else torch.empty(shape, dtype=dtype)
        dist.broadcast(sent, src=self._ranks.leader)
        return sent

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def spreads_weights(zero_stage: int) -> bool:
    """Whether no rank holds the whole of a model that is trained."""
    return zero_stage == 3 and current().count > 1


def first_device(device: torch.device, zero_stage: int) -> torch.device:
    """Where a model lies until training begins: on the host where ZeRO will spread its weights,
    since they need not fit on one device."""
    return torch.device("cpu") if spreads_weights(zero_stage) else device


def reads_weights(zero_stage: int) -> bool:
    """Whether this rank reads a model from disk. Under ZeRO-3 rank 0 alone does, and DeepSpeed
    hands its weights out one by one: a host need not hold the whole model once for each GPU."""
    return zero_stage != 3 or current().rank == 0


_current = Ranks()


def current() -> Ranks:
    """The ranks this process is one of: itself alone, unless it has joined others."""
    return _current


def join() -> Ranks:
    """Meet the other processes that torchrun has started; it says who we are in variables."""
    global _current
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    local_rank = int(os.environ["LOCAL_RANK"])
    one = Ranks(
        dist.get_rank(),
        dist.get_world_size(),
        local_rank=local_rank,
        local_count=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    places = one.gather([int(os.environ.get(NODE_VARIABLE, 0)), local_rank])
    _current = replace(one, leader=places.index([0, 0]))
    return _current
