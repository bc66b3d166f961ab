"""GRPO against TRL, generation included: as it ships, and without gradient checkpointing in bf16
and in float32, in which it samples faster."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

from tests.benchmarks.training_compare import Side, conditions
from tests.benchmarks.turns import spread

REPETITIONS = 5
STEPS = 6
"""Of a repetition; the first two are not measured."""
SIDES = ["caravan", "trl-default", "trl-bf16", "trl-fp32"]
WORK = [(16, 0.0), (64, 0.0), (64, 0.04)]
"""Completions of a step, and beta."""


def main() -> None:
    for completions, beta in WORK:
        compare(completions, beta)
    print(conditions())


def compare(completions: int, beta: float) -> None:
    """Print a table, the first of the sides against the others."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        processes = {
            side: stack.enter_context(Side(side, str(completions), str(beta), module="grpo_side"))
            for side in SIDES
        }
        for _ in range(REPETITIONS + 1):
            for side, process in processes.items():
                found[side].append(process.train(STEPS))
    print(f"\n{completions} completions a step, beta {beta}\n")
    print("| side | CPU-ms per completion token | generation | update | Caravan over it |", end="")
    print(" mean completion, tokens | peak MiB |\n|---|---|---|---|---|---|---|")
    ours = [_cost(run) for run in found[SIDES[0]][1:]]
    for side, runs in found.items():
        costs = [_cost(run) for run in runs[1:]]
        ratios = [theirs / mine for mine, theirs in zip(ours, costs, strict=True)]
        generation = [_cost(run, "generation") for run in runs[1:]]
        update = [whole - part for whole, part in zip(costs, generation, strict=True)]
        print(
            f"| {side} | {spread(costs, 3)} | {spread(generation, 3)} | {spread(update, 3)} "
            f"| {spread(ratios, 2)} | {_mean_length(runs):.0f} | {runs[0]['peak_mib']:.0f} |",
            flush=True,
        )


def _cost(run: dict[str, Any], of: str = "seconds") -> float:
    """CPU-milliseconds per completion token."""
    return float(1000 * run[of] / run["tokens"])


def _mean_length(runs: list[dict[str, Any]]) -> float:
    return statistics.mean(run["tokens"] / run["completions"] for run in runs[1:])
