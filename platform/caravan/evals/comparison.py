"""What changed between two models that were asked the same questions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from caravan.data.io import read_rows
from caravan.data.template import TEMPLATE_HASH
from caravan.data.template_stamp import recorded_hash
from caravan.errors import DataError
from caravan.evals.models import EVALUATE, in_order, model_of
from caravan.evals.scoring import ScoredCompletion
from caravan.evals.stats import (
    Difference,
    Interval,
    mean_interval,
    paired_difference,
    suite_interval,
)


@dataclass(frozen=True)
class TaskScore:
    """The score of one model on one task, by the metric that the task is known by."""

    task: str
    metric: str
    suite: Literal["dev", "unseen"]
    judged: bool
    group: str
    """Tasks of one group count once in an average; the task's own name where it has none."""
    value: float
    low: float
    high: float
    n: int
    instances: Mapping[str, float]
    truncated: float
    """Share of the replies that reached the length limit."""
    too_long: float
    """Share of the prompts that left no room for a reply."""
    undecided: float
    """Share of the replies that the verifier or the judge failed on."""


@dataclass(frozen=True)
class Evaluation:
    """All that `evaluate` wrote about one model."""

    stage: str
    scores: Mapping[str, TaskScore]
    """By task, in the order of the recipe."""
    rows: Mapping[tuple[str, str], ScoredCompletion]
    """The first completion of each instance, by task and id."""
    template_hash: str
    """Of the chat template that the model was asked in."""


@dataclass(frozen=True)
class Change:
    """What one stage did to one task."""

    task: str
    metric: str
    before: str
    after: str
    difference: Difference


@dataclass(frozen=True)
class WinRate:
    """How often the judge rates one model's reply above the other's; a tie is half a win."""

    task: str
    winner: str
    """The model whose rate this is."""
    loser: str
    interval: Interval
    wins: int
    ties: int
    losses: int
    instances: Mapping[str, float]


def load_evaluation(stage: str, directory: Path) -> Evaluation:
    try:
        document = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the evaluation of {stage}: {error}") from error
    rows: dict[tuple[str, str], ScoredCompletion] = {}
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    undecided: Counter[str] = Counter()
    for row in read_rows(directory / "instances.jsonl", ScoredCompletion):
        ends[row.task][row.finish_reason] += 1
        undecided[row.task] += row.score is None
        if row.index == 0:
            rows[row.task, row.id] = row
    scores = {
        entry["task"]: TaskScore(
            task=entry["task"],
            metric=entry["metric"],
            suite=entry["suite"],
            judged=entry["judged"],
            group=entry["group"] or entry["task"],
            value=entry["value"],
            low=entry["low"],
            high=entry["high"],
            n=entry["n"],
            instances=entry["instances"],
            truncated=ends[entry["task"]]["length"] / ends[entry["task"]].total(),
            too_long=ends[entry["task"]]["too_long"] / ends[entry["task"]].total(),
            undecided=undecided[entry["task"]] / ends[entry["task"]].total(),
        )
        for entry in document
        if entry["primary"]
    }
    return Evaluation(stage, scores, rows, recorded_hash(directory) or TEMPLATE_HASH)


def load_evaluations(inputs: Mapping[str, Path]) -> list[Evaluation]:
    """The evaluations among a stage's inputs, in the order in which a recipe makes the models."""
    found: dict[str, list[Evaluation]] = defaultdict(list)
    for name in sorted(inputs, key=lambda name: (len(name), name)):  # shard 10 after shard 9
        if model := model_of(name.replace("evaluation-", EVALUATE)):
            found[model].append(load_evaluation(model, inputs[name]))
    return [_whole(found[model]) for model in in_order(found)]


def _whole(shards: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of one model whose tasks were divided into `shards`."""
    scores = {task: score for shard in shards for task, score in shard.scores.items()}
    rows = {key: row for shard in shards for key, row in shard.rows.items()}
    return replace(shards[0], scores=scores, rows=rows)


def transitions(evaluations: Sequence[Evaluation]) -> list[tuple[Evaluation, Evaluation]]:
    """Each model with the one it was trained from."""
    return list(pairwise(evaluations))


def changes(before: Evaluation, after: Evaluation, samples: int, seed: int) -> list[Change]:
    """The change of every task that both were asked, by paired bootstrap."""
    return [
        Change(
            task=name,
            metric=score.metric,
            before=before.stage,
            after=after.stage,
            difference=paired_difference(*_paired(before, after, name), samples=samples, seed=seed),
        )
        for name, score in after.scores.items()
        if _common(before, after, name)
    ]


def average_change(
    before: Evaluation, after: Evaluation, samples: int, seed: int
) -> Interval | None:
    """Mean change over the dev tasks that are not judged, each group of tasks counting once."""
    by_group: dict[str, list[list[float]]] = defaultdict(list)
    for name, score in after.scores.items():
        if not score.judged and score.suite == "dev" and _common(before, after, name):
            a, b = _paired(before, after, name)
            by_group[score.group].append([y - x for x, y in zip(a, b, strict=True)])
    if not by_group:
        return None
    return suite_interval(list(by_group.values()), samples=samples, seed=seed)


def win_rates(before: Evaluation, after: Evaluation, samples: int, seed: int) -> list[WinRate]:
    """Of `after` against `before`, on every judged task."""
    rates = []
    for name, score in after.scores.items():
        if not score.judged or not _common(before, after, name):
            continue
        ids = _common(before, after, name)
        theirs, ours = _paired(before, after, name)
        outcomes = {
            id: 0.5 if abs(y - x) < 1e-9 else float(y > x)
            for id, x, y in zip(ids, theirs, ours, strict=True)
        }
        values = list(outcomes.values())
        rates.append(
            WinRate(
                task=name,
                winner=after.stage,
                loser=before.stage,
                interval=mean_interval(values, samples=samples, seed=seed),
                wins=values.count(1.0),
                ties=values.count(0.5),
                losses=values.count(0.0),
                instances=outcomes,
            )
        )
    return rates


def _common(before: Evaluation, after: Evaluation, task: str) -> list[str]:
    """Ids of the instances that both have a score for, in their order."""
    if task not in before.scores or task not in after.scores:
        return []
    known = before.scores[task].instances
    return [id for id in after.scores[task].instances if id in known]


def _paired(before: Evaluation, after: Evaluation, task: str) -> tuple[list[float], list[float]]:
    ids = _common(before, after, task)
    a, b = before.scores[task].instances, after.scores[task].instances
    return [a[id] for id in ids], [b[id] for id in ids]


@dataclass(frozen=True)
class Sample:
    """One question with the answers of all models."""

    task: str
    id: str
    why: str
    """Why it is shown."""
    rows: tuple[ScoredCompletion, ...]
    """In the order of the evaluations."""


def pick_samples(evaluations: Sequence[Evaluation], tasks: Iterable[str]) -> list[Sample]:
    """Of each task: an answer that got better, one that got worse, and one that stays low.

    Chosen by scores and order alone; where a kind does not occur, it is left out.
    """
    samples = []
    for task in tasks:
        ids = [id for t, id in evaluations[-1].rows if t == task]
        scored = {
            id: [e.rows[task, id].score or 0.0 for e in evaluations]
            for id in ids
            if all((task, id) in e.rows for e in evaluations)
        }
        picked: set[str] = set()
        for why, id in (
            ("better", max(scored, key=lambda id: _gain(scored[id]), default="")),
            ("worse", min(scored, key=lambda id: _largest_fall(scored[id]), default="")),
            ("still low", min(scored, key=lambda id: (max(scored[id]), len(id)), default="")),
        ):
            if id and id not in picked and _is(why, scored[id]):
                picked.add(id)
                rows = tuple(e.rows[task, id] for e in evaluations)
                samples.append(Sample(task, id, why, rows))
    return samples


def _is(why: str, scores: Sequence[float]) -> bool:
    if why == "better":
        return scores[-1] > scores[0]
    return _largest_fall(scores) < 0 if why == "worse" else scores[-1] <= scores[0]


def _gain(scores: Sequence[float]) -> tuple[float, int, float]:
    """Most gained overall, then never falling, then gained late."""
    falls = sum(after < before for before, after in pairwise(scores))
    return scores[-1] - scores[0], -falls, -sum(scores)


def _largest_fall(scores: Sequence[float]) -> float:
    """From one model to the next, as a negative number."""
    return min((after - before for before, after in pairwise(scores)), default=0.0)
