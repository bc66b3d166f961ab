"""Seconds of the two kinds of work that cost: training passes, and decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caravan.planning.devices import Placement
from caravan.planning.memory import TrainingSetup
from caravan.planning.shapes import ModelShape

BACKWARD = 2
"""Operations of a backward pass, as a multiple of the forward pass."""
KERNELS_OF_BACKWARD = 2
DECODE_UTILISATION = 0.5
"""Share of training's MFU that decoding many rows at once reaches."""
VLLM_ROWS = 256
"""Sequences that vLLM decodes at once on one device."""


@dataclass(frozen=True)
class Work:
    seconds: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, self.flops + other.flops)


@dataclass(frozen=True)
class Rows:
    """Rows that go through a model, by their means."""

    count: float
    tokens: float
    """Of a row, prompt and reply together."""
    supervised: float
    """Of them, tokens that go through the output head."""


def passes_per_step(
    rows: Rows, rows_per_step: float, setup: TrainingSetup, tokens_per_pass: int
) -> int:
    """Forward passes of one rank in one optimiser step, those side by side counted once: gradient
    accumulation."""
    of_lane = rows_per_step * rows.tokens / setup.ranks / setup.lanes
    return max(1, math.ceil(of_lane / tokens_per_pass))


def training(
    setup: TrainingSetup, placement: Placement, rows: Rows, *, steps: int, tokens_per_pass: int
) -> Work:
    """`steps` optimiser steps over `rows` in all: forward and backward passes."""
    forward = setup.shape.forward_flops(
        rows.count * rows.tokens, length=rows.tokens, head_tokens=rows.count * rows.supervised
    )
    again = 1 if setup.gradient_checkpointing else 0
    flops = forward * (1 + BACKWARD)
    passes = steps * passes_per_step(rows, rows.count / steps, setup, tokens_per_pass)
    kernels = (1 + KERNELS_OF_BACKWARD + again) * setup.shape.num_layers
    overhead = passes * kernels * placement.device.layer_seconds
    computing = (flops + again * forward) / placement.flops + overhead
    optimiser = steps * 20 * setup.shape.parameters / _memory_bandwidth(setup, placement)
    return Work(max(computing, _exchange(setup, placement, passes, steps)) + optimiser, flops)


def forward_passes(
    setup: TrainingSetup, placement: Placement, rows: Rows, *, tokens_per_pass: int
) -> Work:
    """One forward pass over all rows: log-probabilities of a reference, values."""
    flops = setup.shape.forward_flops(
        rows.count * rows.tokens, length=rows.tokens, head_tokens=rows.count * rows.supervised
    )
    passes = rows.count * rows.tokens / setup.ranks / tokens_per_pass
    overhead = passes * setup.shape.num_layers * placement.device.layer_seconds
    gathering = setup.spread * passes * 2 * setup.shape.parameters / placement.link  # bf16
    return Work(max(flops / placement.flops + overhead, gathering), flops)


def decoding(
    shape: ModelShape,
    placement: Placement,
    *,
    rows: float,
    prompt_tokens: float,
    reply_tokens: float,
    longest_reply: float,
    batch_size: int,
    continuous: bool,
) -> Work:
    """Replies to prompts, `batch_size` at once on all devices together.

    Args:
        continuous: a finished row makes room for the next (vLLM); else a batch ends with its
            longest reply.
    """
    prefill = shape.forward_flops(rows * prompt_tokens, length=prompt_tokens, head_tokens=rows)
    context = prompt_tokens + reply_tokens / 2
    decode = shape.forward_flops(
        rows * reply_tokens, length=2 * context, head_tokens=rows * reply_tokens
    )
    batch = min(batch_size, rows)
    steps = math.ceil(rows / batch) * longest_reply
    if continuous:
        steps = rows * reply_tokens / batch
    device = placement.device
    cores = placement.count if device.name == "cpu" else 1
    width = 4 if device.name == "cpu" else 2
    read = width * shape.parameters + batch * context * shape.kv_bytes_per_token
    bandwidth = device.bandwidth * device.bandwidth_share * (placement.count / cores)
    reading = steps * read / bandwidth
    computing = decode / (placement.flops * DECODE_UTILISATION)
    overhead = steps * shape.num_layers * device.layer_seconds
    seconds = prefill / placement.flops + max(reading, computing) + overhead
    return Work(seconds, prefill + decode)


def _exchange(setup: TrainingSetup, placement: Placement, passes: int, steps: int) -> float:
    """Seconds that ranks spend on weights and gradients, if nothing else were to be done."""
    if setup.ranks == 1:
        return 0.0
    once = 2 * setup.shape.parameters * setup.trained  # bf16
    moved = 3 * once * passes if setup.zero_stage == 3 else 2 * once * steps
    return moved / placement.link


def _memory_bandwidth(setup: TrainingSetup, placement: Placement) -> float:
    """Of the optimiser's pass over its share of the parameters."""
    shards = setup.ranks if setup.zero_stage >= 1 else 1
    return placement.device.bandwidth * shards


def loading_seconds(shape: ModelShape) -> float:
    """Reading the weights and writing the trained ones, at a gigabyte a second."""
    return 2 * 4 * shape.parameters / 1e9
