"""How far a plan is off, measured on a finished run of the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from caravan.planning.plan import Plan
from caravan.registry import StageRunRow, State
from caravan.stages.usage import PEAK_GPU_MEMORY, PEAK_MEMORY


@dataclass(frozen=True)
class StageError:
    """A stage as planned and as measured; None where the run has no measurement."""

    node: str
    planned_seconds: float
    seconds: float | None
    planned_gib: float
    gib: float | None

    @property
    def time_ratio(self) -> float | None:
        """Planned over measured."""
        return self.planned_seconds / self.seconds if self.seconds else None

    @property
    def memory_ratio(self) -> float | None:
        return self.planned_gib / self.gib if self.gib else None


@dataclass(frozen=True)
class Comparison:
    stages: tuple[StageError, ...]

    @property
    def planned_seconds(self) -> float:
        """Of the stages that were measured."""
        return sum(stage.planned_seconds for stage in self.stages if stage.seconds)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages if stage.seconds)

    @property
    def typical_factor(self) -> float:
        """Factor by which a stage's time is off, up or down: the geometric mean over the stages,
        each weighted by its measured seconds. 1 is exact."""
        logs = [
            (stage.seconds, abs(math.log(stage.planned_seconds / stage.seconds)))
            for stage in self.stages
            if stage.seconds
        ]
        total = sum(seconds for seconds, _ in logs)
        return math.exp(sum(s * log for s, log in logs) / total) if total else math.nan


def compare(plan: Plan, measured: Iterable[StageRunRow]) -> Comparison:
    """Put each planned stage beside the one that did its work in a run.

    Args:
        measured: stage runs; of a reused one pass the stage run that did the work, under the
            name of the node.
    """
    done = {stage.node: stage for stage in measured if stage.state is State.SUCCEEDED}
    stages = []
    for planned in plan.stages:
        found = done.get(planned.node)
        memory = None
        if found is not None:
            key = PEAK_MEMORY if planned.device == "cpu" else PEAK_GPU_MEMORY
            memory = found.metrics.get(key)
        seconds = found.seconds if found is not None else None
        stages.append(
            StageError(planned.node, planned.seconds, seconds, planned.memory_gib, memory)
        )
    return Comparison(tuple(stages))
