"""A stage that logs 1,000 metric points over some seconds, once the file `go` is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from caravan.recipe import Config, Resources
from caravan.stages.context import StageContext, StageResult

NAME = "points"
VERSION = 1
STEPS, NAMES = 250, ("loss", "margin", "accuracy", "grad_norm")


class PointsConfig(Config):
    number: int
    resources: Resources = Resources(cpus=1)


def run(config: PointsConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    while not (context.recipe_dir / "go").exists():
        time.sleep(0.5)
    for step in range(1, STEPS + 1):
        context.log(step, {name: step + i for i, name in enumerate(NAMES)})
        time.sleep(0.08)
    (context.output("report", "report") / "number.txt").write_text(str(config.number))
    return StageResult({"number": config.number})
