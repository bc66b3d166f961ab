"""The stage runs of a run beside those that its recipe still has to come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.registry import RunRow, StageRunRow, State
from caravan_pipelines.graph import stage_graph

FIRST_METRICS = (
    "reward", "objective/verified", "objective/scores", "objective/kl", "completions/mean_length",
    "loss", "validation/loss", "accuracy", "rewards/accuracies", "margin", "rewards/margins",
    "entropy", "grad_norm", "learning_rate",
)  # fmt: skip
"""Metrics that a reader looks for first, in that order; `loss` stands for `loss/policy`, too."""

COUNTS = ("loss_spikes", "skipped_steps", "num_tokens")
"""Metrics that a reader looks for last."""


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


def by_interest(names: Iterable[str]) -> list[str]:
    """Metrics, those that readers look for first in front."""

    def rank(name: str) -> tuple[int, str]:
        if name in COUNTS:
            return len(FIRST_METRICS) + 1, name
        for position, first in enumerate(FIRST_METRICS):
            if f"{name}/".startswith(f"{first}/"):
                return position, name
        return len(FIRST_METRICS), name

    return sorted(set(names), key=rank)
