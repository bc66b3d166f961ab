"""A small stage with a checkpoint: counts to `config.steps`, one number a step.

What it does besides is told by files in the recipe's directory, so that the key stays the same:
`hold-at` (a step to wait at while the file is there), `fail-at`, `exit-at`, `warn-at`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caravan.recipe import Config, Resources
from caravan.stages.context import Score, StageContext, StageResult

NAME = "count"
VERSION = 1


class CountConfig(Config):
    steps: int = 5
    files: tuple[str, ...] = ()
    resources: Resources = Resources(cpus=1)


def external_files(config: CountConfig, recipe_dir: Path):
    return [recipe_dir / name for name in config.files]


def run(config: CountConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    with (context.recipe_dir / "calls").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    checkpoint = context.workdir / "step"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(start + 1, config.steps + 1):
        context.log(step, {"value": np.float32(step * 1.5)})
        context.progress(step, config.steps)
        checkpoint.write_text(str(step))
        if wanted(context, "warn-at") == step:
            logging.getLogger("caravan.count").warning("step %d looks odd", step)
        if wanted(context, "fail-at") == step:
            raise ValueError(f"step {step} <b>went</b> wrong")
        if wanted(context, "exit-at") == step:
            raise SystemExit(3)
        while wanted(context, "hold-at") == step:
            (context.recipe_dir / f"holding-{step}").touch()
            time.sleep(0.02)
    output = context.output("model", "model")
    (output / "weights.txt").write_text(f"{config.steps} {context.seed} {sorted(inputs)}\n")
    card = context.output("card", "report")
    (card / "card.md").write_text(f"# {config.steps} steps\n")
    half = np.float32(0.5)  # stages hand over what they computed with
    scores = (Score("count", "accuracy", half, 0.4, 0.6, 2, instances={"a": True, "b": False}),)
    return StageResult({"last": np.float32(config.steps)}, scores)


def wanted(context: StageContext, name: str) -> int | None:
    try:
        return int((context.recipe_dir / name).read_text())
    except FileNotFoundError:
        return None
