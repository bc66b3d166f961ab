"""A sweep read as one experiment: what each arm scores over its seeds, and whether it differs from
the first arm by more than the luck of seeds and questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean, stdev

import numpy as np

from caravan.errors import RegistryError
from caravan.evals.caveats import selected_by, selected_by_scores
from caravan.evals.headlines import headline
from caravan.evals.models import in_order, model_of
from caravan.evals.stats import Floats, Interval, crossed_interval
from caravan.recipe.io import differing_fields, shown_value
from caravan.registry import Registry, RunRow, ScoreRow, is_share

ALL_TASKS = "mean of tasks"
"""The mean over the tasks that are not rated, as it heads a run."""

Instances = Callable[[int], Mapping[str, float]]
"""The questions behind a score, by its id, with the score of each."""


@dataclass(frozen=True)
class Arm:
    """The runs of one recipe, with one seed each."""

    values: Mapping[str, object]
    """Of the fields in which the recipes of the sweep differ."""
    runs: tuple[RunRow, ...]

    @property
    def labels(self) -> list[str]:
        """`dpo.beta=1` for each field; the recipe's name where only seeds differ."""
        shown = [f"{path}={shown_value(value)}" for path, value in self.values.items()]
        return shown or [self.runs[0].name]


@dataclass(frozen=True)
class ArmScore:
    """What the runs of an arm score on a task."""

    arm: Arm
    task: str
    metric: str
    by_seed: Mapping[int, float]
    caveat: str
    """Why the scores say little, where many replies have no end or no verdict."""
    difference: Interval | None
    """From the first arm, over the questions that all have and the seeds that both have; None of
    the first arm, and where there are none."""
    paired_seeds: int

    @property
    def mean(self) -> float | None:
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None of fewer than two."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def verdict(self) -> str:
        """Whether the arm is told from the first one; empty where there is no difference to ask
        about."""
        if self.difference is None:
            return ""
        if self.paired_seeds < 2:
            return UNKNOWN
        if self.difference.low > 0:
            return BETTER
        return WORSE if self.difference.high < 0 else WITHIN


BETTER, WORSE, WITHIN = "better", "worse", "within the noise"
UNKNOWN = "one seed: noise unknown"


def sweep_runs(tag: str, registry: Registry) -> list[RunRow]:
    """The runs of a sweep in the order in which they were made.

    Raises:
        RegistryError: there is none.
    """
    found = registry.list_runs(limit=None, tag=tag)
    if not found:
        raise RegistryError(f"no run has the tag {tag!r}; `caravan runs` lists the tags of runs")
    return found[::-1]


def arms_of(runs: Sequence[RunRow]) -> list[Arm]:
    """The arms of a sweep in the order of their first runs."""
    fields = differing_fields([run.recipe for run in runs])
    fields.pop("seed", None)
    arms: dict[str, Arm] = {}
    for i, run in enumerate(runs):
        values = {path: found[i] for path, found in fields.items()}
        known = arms.get(repr(values), Arm(values, ()))
        arms[repr(values)] = Arm(values, (*known.runs, run))
    return list(arms.values())


def evaluated_models(scores: Iterable[ScoreRow]) -> list[str]:
    """The models that any of the runs has scores of, in the order in which a recipe makes them."""
    return in_order(model for score in scores if (model := model_of(score.node)))


def compare(
    arms: Sequence[Arm], scores: Iterable[ScoreRow], model: str, instances: Instances
) -> list[ArmScore]:
    """The scores of a model of each arm, by task, each by the metric that it is known by. Where
    several are not rated, their mean comes first."""
    found: dict[str, dict[str, ScoreRow]] = {run.id: {} for arm in arms for run in arm.runs}
    for score in scores:
        if model_of(score.node) == model and not isnan(score.value):
            found[score.run_id].setdefault(score.task, score)
    metrics = {score.task: score.metric for of_run in found.values() for score in of_run.values()}
    shares = [task for task, metric in metrics.items() if is_share(metric)]
    groups = [(ALL_TASKS, shares)] if len(shares) > 1 else []
    groups += [(task, [task]) for task in metrics]
    return [
        _arm_score(arm, arms[0], name, metrics.get(name, ""), tasks, found, instances)
        for name, tasks in groups
        for arm in arms
    ]


def notes(arms: Sequence[Arm], scores: Sequence[ArmScore]) -> list[str]:
    """What is to be known of a comparison of a model's scores."""
    found = []
    if any(score.verdict == UNKNOWN for score in scores):
        found.append(
            "With one seed an interval counts the questions alone: how far another seed would move "
            "the scores is unknown. Sweep over seeds too: --over seed=17,18,19"
        )
    if any(score.paired_seeds > 1 for score in scores):
        found.append(
            "Intervals count the noise of seeds and of questions; better and worse are those that "
            "leave out zero, as 1 in 20 does by chance alone."
        )
    if len(arms) > 1 and not any(score.by_seed for score in scores if score.arm is arms[0]):
        found.append("The first arm has no scores: there is nothing to compare with yet.")
    if told := selected_by_scores(selected_by(arms[0].runs[0].recipe)):
        found.append(told)
    return found


def _arm_score(
    arm: Arm,
    first: Arm,
    name: str,
    metric: str,
    tasks: Sequence[str],
    found: Mapping[str, Mapping[str, ScoreRow]],
    instances: Instances,
) -> ArmScore:
    ours, theirs = (_by_seed(one, tasks, found) for one in (arm, first))
    both = [seed for seed in ours if seed in theirs and arm is not first]
    tables = [
        _differences([(theirs[seed][i], ours[seed][i]) for seed in both], instances)
        for i in range(len(tasks) if both else 0)
    ]
    comparable = bool(tables) and all(table.shape[1] > 1 for table in tables)
    rows = [score for of_seed in ours.values() for score in of_seed]
    return ArmScore(
        arm=arm,
        task=name,
        metric=metric,
        by_seed={seed: headline(of_seed).value for seed, of_seed in ours.items()},
        caveat=headline(rows).caveat if rows else "",
        difference=crossed_interval(tables) if comparable else None,
        paired_seeds=len(both) if comparable else 0,
    )


def _by_seed(
    arm: Arm, tasks: Sequence[str], found: Mapping[str, Mapping[str, ScoreRow]]
) -> dict[int, list[ScoreRow]]:
    """The scores of the runs that have one of each of the tasks."""
    return {
        run.seed: [found[run.id][task] for task in tasks]
        for run in arm.runs
        if all(task in found[run.id] for task in tasks)
    }


def _differences(pairs: Sequence[tuple[ScoreRow, ScoreRow]], instances: Instances) -> Floats:
    """Of the second score of each pair over the first, [pairs, questions that all of them have]."""
    scored = [
        {id: value for id, value in instances(score.id).items() if not isnan(value)}
        for pair in pairs
        for score in pair
    ]
    ids = [id for id in scored[0] if all(id in other for other in scored)]
    values = np.array([[of_score[id] for id in ids] for of_score in scored], dtype=np.float64)
    return values[1::2] - values[::2]
