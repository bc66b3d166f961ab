"""Evaluation against lm-evaluation-harness, on a CPU: a small model's greedy replies to the same
questions, and their scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import evaluate_work as e
from tests.benchmarks.turns import Turn, conditions, ratios, spread, take_turns, turn

SIDES = ("caravan", "lm-eval")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        e.write_model(model)
        found = take_turns({name: _side(name, model) for name in SIDES})
    requests = e.QUESTIONS * len(e.TASKS)
    print(f"{requests} questions, replies of at most {e.MAX_COMPLETION} tokens\n")
    print("| side | requests per CPU-second | CPU-seconds | Caravan over it | peak MiB |")
    print("|---|---|---|---|---|")
    for name, turns in found.items():
        rates = [requests / t.seconds for t in turns]
        print(
            f"| {name} | {spread(rates, 1)} | {spread([t.seconds for t in turns], 1)} "
            f"| {spread(ratios(found[SIDES[0]], turns), 2)} | {turns[0].peak_mib:.0f} |"
        )
    ours, theirs = (found[side][0].found for side in SIDES)
    for task in e.TASKS:
        pairs = list(zip(ours[task], theirs[task], strict=True))
        same = [sum(a[i] == b[i] for a, b in pairs) for i in range(3)]
        means = [sum(row[2] for row in side[task]) / len(pairs) for side in (ours, theirs)]
        print(
            f"\n{task}: of {len(pairs)} the same replies {same[0]}, extracted {same[1]}, scores "
            f"{same[2]}; mean score {means[0]:.4f} and {means[1]:.4f}"
        )
    print(conditions(), flush=True)


def _side(name: str, model: Path) -> Callable[[], Turn]:
    def side() -> Turn:
        with tempfile.TemporaryDirectory() as out:
            return turn("evaluate_side", name, model, out)

    return side
