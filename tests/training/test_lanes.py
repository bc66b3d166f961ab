"""Passes side by side give the gradients of passes one after the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from caravan.training.batching import split_passes
from caravan.training.lanes import Lanes


@dataclass(frozen=True)
class Rows:
    x: torch.Tensor

    @property
    def tokens(self) -> int:
        return len(self.x)


def _backward(model: nn.Module, rows: Rows) -> None:
    model(rows.x).square().sum().backward()


def _gradients(lanes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [Rows(torch.randn(rows, 6)) for rows in (5, 2, 9, 4)]
    side_by_side = Lanes(model, lanes)
    side_by_side.map(_backward, batches)
    side_by_side.gather()
    return [p.grad for p in model.parameters()]


def test_the_gradients_are_those_of_one_lane():
    for expected, found in zip(_gradients(1), _gradients(2), strict=True):
        torch.testing.assert_close(found, expected)


def test_equal_steps_give_equal_bits():
    assert all(torch.equal(a, b) for a, b in zip(_gradients(3), _gradients(3), strict=True))


def test_passes_are_computed_at_once():
    both = threading.Barrier(2, timeout=30)
    Lanes(nn.Linear(2, 1), 2).map(lambda *_: both.wait(), [Rows(torch.zeros(1, 2))] * 2)


def test_lanes_see_the_weights_as_they_change():
    model = nn.Linear(2, 1)
    lanes = Lanes(model, 2)
    with torch.no_grad():
        model.weight.fill_(7.0)

    seen = lanes.map(lambda lane, _: lane.weight.sum().item(), [Rows(torch.zeros(1, 2))] * 2)
    assert seen == [14.0, 14.0]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    limit=st.integers(90, 2000),
    lanes=st.integers(2, 4),
)
def test_passes_for_lanes_hold_every_row_within_the_limit(lengths, limit, lanes):
    passes = split_passes(lengths, limit, lanes=lanes)

    assert sorted(i for part in passes for i in part) == list(range(len(lengths)))
    assert len(passes) >= min(lanes, len(split_passes(lengths, limit)))
    for part in passes:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= limit
