"""Batches of preference pairs: both sides of a pair in one forward pass, what they begin with once.

Shapes: P pairs of a pass, T tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from caravan.training.batching import TokenBatch, collate, split_passes
from caravan.training.tokenize import PairRow


@dataclass(frozen=True)
class PairBatch:
    """The P chosen rows, then the P rejected rows."""

    sides: TokenBatch
    """2P rows."""
    reference: Tensor
    """[2P] log-probabilities of the completions under the reference policy; empty where unused."""
    row_ids: tuple[str, ...]
    """Of the pairs."""
    margins: Tensor
    """[P] by how much the chosen completions are rated higher."""
    divergence: Tensor | None = None
    """[] of the policy from the reference policy, where the loss needs it."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.sides.tokens

    @property
    def computed(self) -> int:
        """Tokens that go through the model: what both sides begin with does once."""
        return self.sides.computed

    @property
    def supervised(self) -> int:
        """Tokens of the completions."""
        return self.sides.supervised

    def to(self, device: torch.device) -> PairBatch:
        divergence = None if self.divergence is None else self.divergence.to(device)
        return PairBatch(
            self.sides.to(device),
            self.reference.to(device),
            self.row_ids,
            self.margins.to(device),
            divergence,
        )


def pair_passes(
    rows: Sequence[PairRow],
    reference: Tensor,
    tokens_per_pass: int,
    pad_token_id: int,
    taken: Sequence[int],
    *,
    lanes: int = 1,
) -> list[PairBatch]:
    """The passes over `rows[i]` for `i` in `taken`, of pairs of like length, each of at most
    `tokens_per_pass` tokens computed.

    Args:
        reference: [rows, 2] log-probabilities of chosen and rejected, or empty.
    """
    tokens = [_computed_tokens(rows[i]) for i in taken]
    cuts = split_passes(tokens, tokens_per_pass, lanes=lanes)
    return [_batch([taken[i] for i in cut], rows, reference, pad_token_id) for cut in cuts]


def _batch(
    taken: Sequence[int], rows: Sequence[PairRow], reference: Tensor, pad_token_id: int
) -> PairBatch:
    sides = [rows[i].chosen for i in taken] + [rows[i].rejected for i in taken]
    cached = reference[list(taken)].T.flatten() if len(reference) else reference
    shared = [shared_tokens(rows[i]) for i in taken]
    batch = collate(sides, pad_token_id, shared)
    margins = torch.tensor([rows[i].margin for i in taken])
    return PairBatch(batch, cached, tuple(rows[i].id for i in taken), margins)


def longest_pair(rows: Sequence[PairRow]) -> int:
    """Tokens of the pair that takes most."""
    return max(map(_computed_tokens, rows), default=0)


def shared_tokens(row: PairRow) -> int:
    """Tokens that both sides begin with: the prompt, and where completions begin alike, more.

    At least one token of the rejected side is its own.
    """
    chosen, rejected = row.chosen.input_ids, row.rejected.input_ids
    pairs = zip(chosen, rejected[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _computed_tokens(row: PairRow) -> int:
    """Of both sides, what they begin with counted once."""
    return row.chosen.length + row.rejected.length - shared_tokens(row)
