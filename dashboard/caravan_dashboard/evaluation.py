"""Scores of runs: tables, intervals, differences, and the instances behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, nan
from typing import Any

import pandas as pd

from caravan.evals.models import in_order, model_of
from caravan.evals.stats import Difference, paired_difference
from caravan.registry import ScoreRow, is_share, scale_of
from caravan_dashboard.text import signed_points


@dataclass(frozen=True)
class Column:
    """One evaluated model of one run."""

    run_id: str
    model: str

    def label(self, several_runs: bool) -> str:
        return f"{self.model} · {self.run_id}" if several_runs else self.model


def columns(scores: Sequence[ScoreRow]) -> list[Column]:
    """The evaluated models of the runs, each run's in the order in which it made them."""
    models: dict[str, list[str]] = {}
    for score in scores:
        if model := model_of(score.node):
            models.setdefault(score.run_id, []).append(model)
    return [Column(run, model) for run, made in models.items() for model in in_order(made)]


def tasks(scores: Sequence[ScoreRow]) -> list[tuple[str, str, str]]:
    """Task, metric and suite of every row of the table of scores."""
    return list(dict.fromkeys((s.task, s.metric, s.suite) for s in scores if model_of(s.node)))


def comparisons(scores: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Win rates of one model over another, which the report stage computes."""
    return [s for s in scores if model_of(s.node) is None and s.metric == "win_rate"]


def find(scores: Sequence[ScoreRow], column: Column, task: str, metric: str) -> ScoreRow | None:
    for score in scores:
        if (score.run_id, model_of(score.node)) == (column.run_id, column.model) and (
            score.task, score.metric) == (task, metric):  # fmt: skip
            return score
    return None


def interval_rows(scores: Sequence[ScoreRow], chosen: Sequence[Column]) -> pd.DataFrame:
    """`task`, `series`, `value`, `low`, `high`, `n` for the chart, in percent; without ratings."""
    several = len({column.run_id for column in chosen}) > 1
    lines = []
    for task, metric, _ in tasks(scores):
        for column in chosen if is_share(metric) else ():
            score = find(scores, column, task, metric)
            if score is not None:
                values = (100 * v for v in (score.value, score.low, score.high))
                lines.append((f"{task} ({metric})", column.label(several), *values, score.n))
    return pd.DataFrame(lines, columns=["task", "series", "value", "low", "high", "n"])


def as_table(scores: Sequence[ScoreRow]) -> pd.DataFrame:
    """One line per run, model, task and metric; shares are between 0 and 1. Where two models were
    compared, the stage stands for the model."""
    return pd.DataFrame([
        {"run": s.run_id, "model": model_of(s.node) or s.node, "task": s.task, "metric": s.metric,
         "suite": s.suite, "value": s.value, "low": s.low, "high": s.high, "n": s.n,
         "truncated": s.truncated, "too_long": s.too_long, "undecided": s.undecided}
        for s in scores
    ])  # fmt: skip


Transition = tuple[Column, Column]


def transitions(chosen: Sequence[Column]) -> list[Transition]:
    """What to compare: each model with the one before it; over several runs, with its namesake."""
    if len({column.run_id for column in chosen}) <= 1:
        return list(pairwise(chosen))
    models = dict.fromkeys(column.model for column in chosen)
    return [pair for m in models for pair in pairwise([c for c in chosen if c.model == m])]


def first_shown(columns: Sequence[Column], run_id: str) -> tuple[Column, Column | None]:
    """The latest model of the run, and what to put beside it: the same stage of another run, or
    in a run by itself the model before it."""
    own = [column for column in columns if column.run_id == run_id] or list(columns)
    latest = own[-1]
    others = [column for column in columns if column.run_id != latest.run_id]
    if others:
        return latest, next((c for c in others if c.model == latest.model), others[-1])
    return latest, own[-2] if len(own) > 1 else None


def paired_change(before: Mapping[str, float], after: Mapping[str, float]) -> Difference | None:
    """Difference of the means over the instances that both have; None where they share too few."""
    shared = [i for i in before if i in after and not isnan(before[i] + after[i])]
    if len(shared) < 2:
        return None
    return paired_difference([before[i] for i in shared], [after[i] for i in shared])


# --- instances ----------------------------------------------------------------------------------

INSTANCE_FACTS = ("task", "key", "score", "judged")
FILTERS = {
    "All": "all", "Right": "right", "Wrong": "wrong", "Undecided": "undecided",
    "Gained": "gained", "Lost": "lost",
}  # fmt: skip


def instance_facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    score, index = row.get("score"), row.get("index", 0)
    return {
        "task": row["task"],
        "key": row["id"] + (f" ({index + 1})" if index else ""),
        "score": nan if score is None else float(score),
        "judged": row.get("ratings") is not None,
    }


def of_task(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """The completions of a task by their key: the instance's id, and which of several it is."""
    return table[table["task"] == task].drop_duplicates("key").set_index("key", drop=False)


def filters(table: pd.DataFrame, compared: bool) -> list[str]:
    """What can be asked for: a rating is neither right nor wrong, a change needs another model."""
    names = ["All"]
    if not table["judged"].any():
        names += ["Right", "Wrong"]
    if table["score"].isna().any():
        names.append("Undecided")
    return [*names, "Gained", "Lost"] if compared else names


def matching(table: pd.DataFrame, other: pd.DataFrame | None, which: str) -> pd.DataFrame:
    """Instances that are `right`, `wrong` or `undecided`, or that are scored higher (`gained`) or
    lower (`lost`) than `other`'s."""
    if which == "right":
        return table[table["score"] >= 0.5]
    if which == "wrong":
        return table[table["score"] < 0.5]
    if which == "undecided":
        return table[table["score"].isna()]
    if other is None or which not in ("gained", "lost"):
        return table
    before = other["score"].reindex(table.index)
    return table[table["score"] > before] if which == "gained" else table[table["score"] < before]


def shown_difference(metric: str, difference: float) -> str:
    """In percentage points, or as rated: `+3.4`, `−0.21`."""
    if is_share(metric):
        return signed_points(difference)
    return f"{difference:+.2f}".replace("-", "−")


def shown_value(metric: str, value: float) -> str:
    scale, digits = scale_of(metric)
    return f"{scale * value:.{digits}f}"


def as_text(value: Any) -> str:
    """What a verifier compares with, as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
