"""The stage runs of a run beside those that its recipe still has to come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import ValidationError

from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.registry import MetricRow, RunRow, StageRunRow, State
from caravan_pipelines.graph import stage_graph

MAX_POINTS = 400
"""Points of one metric that go to the browser."""

FIRST_METRICS = (
    "loss", "reward", "accuracy", "verified", "correct", "margin", "kl", "grad_norm",
    "learning_rate",
)  # fmt: skip
"""Words in the names of metrics that a reader looks for first, in that order."""


@dataclass(frozen=True)
class StageLine:
    node: str
    state: State
    run: StageRunRow | None
    """None where the stage has not been opened yet."""

    @property
    def done(self) -> float:
        """Share of the work that is done, as far as the stage has told."""
        if self.state is State.SUCCEEDED:
            return 1.0
        if self.run is None or not self.run.progress_total:
            return 0.0
        return self.run.progress_done / self.run.progress_total


def stage_lines(run: RunRow, stages: Sequence[StageRunRow]) -> list[StageLine]:
    """Every node of the run: of its recipe's order, then what else was opened."""
    opened = {stage.node: stage for stage in stages}
    nodes = [*planned_nodes(run.recipe), *opened]
    return [
        StageLine(node, opened[node].state if node in opened else State.PENDING, opened.get(node))
        for node in dict.fromkeys(nodes)
    ]


def planned_nodes(recipe: Mapping[str, Any]) -> list[str]:
    """The nodes of a stored recipe; none where this version cannot read it any more."""
    try:
        return [node.name for node in stage_graph(Recipe.model_validate(recipe))]
    except (ValidationError, CaravanError):
        return []


def failed(lines: Sequence[StageLine]) -> list[StageRunRow]:
    return [line.run for line in lines if line.run and line.state is State.FAILED]


def newest_active(lines: Sequence[StageLine], with_metrics: Sequence[str]) -> str | None:
    """The node to look at first: one that runs, else the last one that has metrics."""
    running = [line.node for line in lines if line.state is State.RUNNING]
    for node in [*reversed(running), *reversed(with_metrics)]:
        if node in with_metrics:
            return node
    return None


def metric_names(points: Sequence[MetricRow]) -> list[str]:
    """Names of the metrics, those that readers look for first in front."""

    def rank(name: str) -> tuple[int, str]:
        for position, word in enumerate(FIRST_METRICS):
            if word in name:
                return position, name
        return len(FIRST_METRICS), name

    return sorted({point.name for point in points}, key=rank)


def series(points: Sequence[MetricRow], name: str, max_points: int = MAX_POINTS) -> pd.DataFrame:
    """`step` and `value` of one metric, thinned evenly; first and last point are kept."""
    chosen = [(p.step, p.value) for p in points if p.name == name]
    if len(chosen) > max_points:
        last = len(chosen) - 1
        chosen = [chosen[round(i * last / (max_points - 1))] for i in range(max_points)]
    return pd.DataFrame(chosen, columns=["step", "value"])
