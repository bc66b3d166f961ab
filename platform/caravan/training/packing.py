"""Rows side by side without padding, and without seeing each other.

A batch is padded only on paper: what goes through the model is one row of all its tokens, each with
the position that it has in its own row. Attention alone must know the rows; `Layout` tells it which
tokens each may look at. A row may begin with the tokens of another one, which are then computed
once: both completions of a preference pair share their prompt.

Shapes: B rows, T tokens of the longest row, N tokens computed, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

WHOLE_TOKENS = 32
"""The N tokens are filled up to a multiple of this. A CPU's kernels are made anew for every shape
that they meet, each in about a millisecond and 0.7 MiB: few distinct shapes, little of either."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one row, which see themselves causally and all of a prefix."""

    start: int
    """Place of the first token among the N."""
    tokens: int
    prefix_start: int = 0
    prefix: int = 0
    """Tokens of another row, from `prefix_start`, that stand in front."""

    @property
    def keys(self) -> int:
        """Tokens that the last token sees."""
        return self.prefix + self.tokens


@dataclass(frozen=True)
class Varlen:
    """The segments as kernels for rows of unequal length take them."""

    queries: Tensor
    """[S + 1] int32: where each segment begins, and where the last one ends."""
    keys: Tensor
    """[S + 1] int32: the same of what the segments see."""
    key_places: Tensor | None
    """Which of the N tokens the keys are, segment by segment; None: all N."""
    max_queries: int
    max_keys: int


@dataclass(frozen=True)
class Layout:
    kept: Tensor
    """[N] int64: places of the tokens that are computed, in the padded batch laid out flat; at the
    end some that nobody asked for, to make N round."""
    positions: Tensor
    """[N] int64: place of each token in its own row."""
    found: Tensor
    """[B, T] int64: which of the N tokens stands there; 0 on padding."""
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.kept)

    def to(self, device: torch.device) -> Layout:
        if device == self.kept.device:
            return self
        return Layout(
            self.kept.to(device), self.positions.to(device), self.found.to(device), self.segments
        )

    @cached_property
    def varlen(self) -> Varlen:
        device = self.kept.device
        sizes = [segment.tokens for segment in self.segments]
        keys = [segment.keys for segment in self.segments]
        places = None
        if any(segment.prefix for segment in self.segments):
            places = np.concatenate([key_places(segment) for segment in self.segments])
        return Varlen(
            _bounds(sizes).to(device),
            _bounds(keys).to(device),
            None if places is None else torch.from_numpy(places).to(device),
            max(sizes),
            max(keys),
        )


def lay_out(lengths: Sequence[int], width: int, prompts: Sequence[int] = ()) -> Layout:
    """The layout of B rows padded on the right to `width`.

    Args:
        lengths: [B] tokens of each row.
        prompts: [B / 2] or empty: so many tokens of row B/2 + i are those that row i begins with,
            and are computed there.
    """
    found = np.zeros((len(lengths), width), dtype=np.int64)
    kept, positions, segments = [], [], []
    start = 0
    for row, length in enumerate(lengths):
        source = row - len(prompts)
        prefix = prompts[source] if prompts and source >= 0 else 0
        own = length - prefix
        if prefix:
            found[row, :prefix] = found[source, :prefix]
        found[row, prefix:length] = np.arange(start, start + own)
        kept.append(np.arange(row * width + prefix, row * width + length))
        positions.append(np.arange(prefix, length))
        segments.append(Segment(start, own, int(found[source, 0]) if prefix else 0, prefix))
        start += own
    if filler := -start % WHOLE_TOKENS:
        kept.append(np.zeros(filler, dtype=np.int64))
        positions.append(np.arange(filler))
        segments.append(Segment(start, filler))
    return Layout(
        torch.from_numpy(np.concatenate(kept)),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(found),
        tuple(segments),
    )


def key_places(segment: Segment) -> np.ndarray:
    """[keys] int64: which of the N tokens the segment sees, its own ones last."""
    return np.concatenate(
        [
            np.arange(segment.prefix_start, segment.prefix_start + segment.prefix),
            np.arange(segment.start, segment.start + segment.tokens),
        ]
    )


def _bounds(sizes: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32))
