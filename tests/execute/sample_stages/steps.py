"""A stage that gives out what it has come to along the way, to be selected from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caravan.stages.context import StageContext, StageResult

from .count import CountConfig

NAME = "steps"
VERSION = 1


def run(config: CountConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    with (context.recipe_dir / "calls").open("a") as calls:
        calls.write("steps\n")
    for step in range(1, config.steps + 1):
        (context.output(f"step-{step}", "model") / "weights.txt").write_text(f"{step}\n")
    (context.output("rollouts", "report") / "rows.jsonl").write_text("{}\n")
    return StageResult({})
