"""Which rows an optimiser step takes, and how it is cut into passes.

An optimiser step takes a fixed number of rows from a stream of seeded epoch permutations, so the
rows of step k are a pure function of (seed, k): resuming needs the step number and nothing else.
Inside the step, rows are sorted by length and cut into passes of at most so many tokens.
The cut changes speed and memory, never the loss: losses are sums, normalised over the whole step.

Shapes: B rows of a pass, T tokens of its longest row.
"""

from __future__ import annotations

import heapq
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from caravan.errors import DataError
from caravan.training.packing import Layout, lay_out
from caravan.training.seeds import derived_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRow:
    """One row as token ids, with the tokens that are trained on."""

    id: str
    input_ids: Sequence[int]
    loss_mask: Sequence[bool]

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.input_ids)


@dataclass(frozen=True)
class TokenBatch:
    """The rows of one pass, padded on the right; `layout` says how they are computed without the
    padding."""

    input_ids: Tensor
    """[B, T] int64."""
    loss_mask: Tensor
    """[B, T] bool; False on padding."""
    lengths: Tensor
    """[B] int64, tokens without padding."""
    row_ids: tuple[str, ...]
    layout: Layout

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.lengths.sum())

    @property
    def computed(self) -> int:
        """Tokens that go through the model."""
        return self.layout.tokens

    @property
    def supervised(self) -> int:
        """Tokens that are trained on; what stands before them goes through the output head."""
        return int(self.loss_mask[:, 1:].sum())

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device),
            self.loss_mask.to(device),
            self.lengths.to(device),
            self.row_ids,
            self.layout.to(device),
        )


@dataclass
class StepSampler:
    """The rows of every optimiser step."""

    rows: int
    """Rows in the dataset."""
    rows_per_step: int
    total_rows: int
    """Rows drawn in all, over all epochs."""
    seed: int
    held_out: tuple[int, ...] = ()
    """Row numbers that no step has."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        return math.ceil(self.total_rows / self.rows_per_step)

    def step(self, index: int) -> list[int]:
        """Row numbers of step `index`; only the last step may be smaller than the others."""
        first = index * self.rows_per_step
        last = min(first + self.rows_per_step, self.total_rows)
        trained = self.rows - len(self.held_out)
        return [int(self._order(at // trained)[at % trained]) for at in range(first, last)]

    def drawn(self) -> list[int]:
        """Every row that some step takes, once."""
        return [int(row) for row in self._order(0)[: self.total_rows]]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            order = epoch_order(self.rows, epoch, self.seed)
            self._orders[epoch] = order[~np.isin(order, self.held_out)]
        return self._orders[epoch]


def plan_steps(
    rows: int,
    rows_per_step: int,
    *,
    epochs: float,
    max_steps: int | None,
    seed: int,
    validation_share: float = 0.0,
) -> StepSampler:
    """How `rows` are drawn. A step never takes more rows than there are.

    Args:
        validation_share: of the rows, which no step gets: at least one where it is above 0.

    Raises:
        DataError: there are no rows, or all are held out.
    """
    held_out = _hold_out(rows, validation_share, seed)
    every, rows = rows, rows - len(held_out)
    if every == 0:
        raise DataError("no rows are left to train on; see the counts of dropped rows in the log")
    if rows == 0:
        raise DataError(
            f"validation_share {validation_share} of {every} rows leaves none to train on; lower it"
        )
    if rows_per_step > rows:
        logger.warning(
            "%d rows per optimiser step were asked for, but there are only %d: each step takes all "
            "of them",
            rows_per_step,
            rows,
        )
        rows_per_step = rows
    total = rows_per_step * max_steps if max_steps else max(1, round(epochs * rows))
    return StepSampler(every, rows_per_step, total, seed, held_out)


def _hold_out(rows: int, share: float, seed: int) -> tuple[int, ...]:
    count = min(rows, math.ceil(share * rows))
    order = np.random.default_rng(derived_seed(seed, "held out", 0)).permutation(rows)
    return tuple(sorted(order[:count].tolist()))


def epoch_order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """[rows] int64, a permutation that depends on (seed, epoch) only."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def split_passes(
    lengths: Sequence[int], tokens_per_pass: int, *, lanes: int = 1
) -> list[list[int]]:
    """Indices of `lengths`, longest first, cut where the pass would exceed the limit.

    A row longer than the limit has a pass of its own.

    Args:
        lanes: passes computed at once. With several, there is a multiple of them, of nearly equal
            size, as far as the rows go.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    passes = _cut(order, lengths, tokens_per_pass)
    if lanes == 1 or len(lengths) <= lanes:
        return passes if lanes == 1 else [[index] for index in order]
    wanted = -(-len(passes) // lanes) * lanes
    least = bisect_left(
        range(1, tokens_per_pass),
        True,
        key=lambda limit: len(_cut(order, lengths, limit)) <= wanted,
    )
    return _cut(order, lengths, least + 1)


def _cut(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    passes: list[list[int]] = []
    tokens = 0
    for index in order:
        tokens += lengths[index]
        if passes and tokens <= limit:
            passes[-1].append(index)
        else:
            passes.append([index])
            tokens = lengths[index]
    return passes


def split_ranks(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `lengths` for each of `ranks` processes, with nearly equal sums of lengths.

    Longest first, each to the rank with the fewest tokens so far (Graham 1969): the largest sum is
    at most 4/3 of the best possible one. A rank is empty only with fewer rows than ranks.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    lightest = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in order:
        tokens, rank = lightest[0]
        shares[rank].append(index)
        heapq.heapreplace(lightest, (tokens + lengths[index], rank))
    return shares


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[B, T] int64: `rows` side by side, filled up with `value`."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def collate(rows: Sequence[TokenRow], pad_token_id: int, prompts: Sequence[int] = ()) -> TokenBatch:
    """Args:
    prompts: see `packing.lay_out`.
    """
    input_ids = pad_right([row.input_ids for row in rows], pad_token_id)
    lengths = [row.length for row in rows]
    return TokenBatch(
        input_ids=input_ids,
        loss_mask=pad_right([row.loss_mask for row in rows], 0).bool(),
        lengths=torch.tensor(lengths),
        row_ids=tuple(row.id for row in rows),
        layout=lay_out(lengths, input_ids.shape[1], prompts),
    )
