"""Evaluation against lm-evaluation-harness, on a CPU: a small model's greedy replies to the same
questions, and their scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks import evaluate_work as e
from tests.benchmarks.turns import Turn, conditions, ratios, spread, take_turns, turn

SIDES = ("caravan", "lm-eval")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        e.write_model(model)
        replies = take_turns({name: _side(name, model) for name in SIDES})
        options = take_turns({name: _side(f"{name}-options", model) for name in SIDES})
    count = e.QUESTIONS * len(e.TASKS)
    print(f"{count} questions, replies of at most {e.MAX_COMPLETION} tokens\n")
    _show(replies, count)
    ours, theirs = (replies[side][0].found for side in SIDES)
    for task in e.TASKS:
        pairs = list(zip(ours[task], theirs[task], strict=True))
        same = [sum(a[i] == b[i] for a, b in pairs) for i in range(2)]
        means = [sum(row[1] for row in side[task]) / len(pairs) for side in (ours, theirs)]
        print(
            f"\n{task}: of {len(pairs)} the same replies {same[0]}, the same scores {same[1]}; "
            f"mean score {means[0]:.4f} and {means[1]:.4f}"
        )
    print(f"\n{e.QUESTIONS} questions with 4 options each, after {e.EXAMPLES} examples\n")
    _show(options, e.QUESTIONS)
    ours, theirs = (options[side][0].found for side in SIDES)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"\nof {len(ours)} the same verdict on {same}")
    print(conditions(), flush=True)


def _show(found: Mapping[str, Sequence[Turn]], requests: int) -> None:
    print("| side | requests per CPU-second | CPU-seconds | Caravan over it | peak MiB |")
    print("|---|---|---|---|---|")
    for name, turns in found.items():
        rates = [requests / t.seconds for t in turns]
        print(
            f"| {name} | {spread(rates, 1)} | {spread([t.seconds for t in turns], 1)} "
            f"| {spread(ratios(found[SIDES[0]], turns), 2)} | {turns[0].peak_mib:.0f} |"
        )


def _side(name: str, model: Path) -> Callable[[], Turn]:
    def side() -> Turn:
        with tempfile.TemporaryDirectory() as out:
            return turn("evaluate_side", name, model, out)

    return side
