"""Batches of preference pairs: both sides of a pair in one forward pass.

Shapes: P pairs of a pass, T tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    divergence: Tensor | None = None
    """[] of the policy from the reference policy, where the loss needs it."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.sides.tokens

    def to(self, device: torch.device) -> PairBatch:
        divergence = None if self.divergence is None else self.divergence.to(device)
        return PairBatch(self.sides.to(device), self.reference.to(device), self.row_ids, divergence)


def pair_passes(
    rows: Sequence[PairRow],
    reference: Tensor,
    tokens_per_pass: int,
    pad_token_id: int,
    taken: Sequence[int],
    *,
    lanes: int = 1,
) -> list[PairBatch]:
    """The passes over `rows[i]` for `i` in `taken`, of pairs of like length.

    Args:
        reference: [rows, 2] log-probabilities of chosen and rejected, or empty.
    """
    # Both sides of a pair are padded to the longest row of the pass, hence half the budget.
    lengths = [rows[i].length for i in taken]
    cuts = split_passes(lengths, max(1, tokens_per_pass // 2), lanes=lanes)
    return [_batch([taken[i] for i in cut], rows, reference, pad_token_id) for cut in cuts]


def _batch(
    taken: Sequence[int], rows: Sequence[PairRow], reference: Tensor, pad_token_id: int
) -> PairBatch:
    sides = [rows[i].chosen for i in taken] + [rows[i].rejected for i in taken]
    cached = reference[list(taken)].T.flatten() if len(reference) else reference
    return PairBatch(collate(sides, pad_token_id), cached, tuple(rows[i].id for i in taken))
