"""What the list of runs shows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan

import pandas as pd

from caravan.evals.headlines import Headline
from caravan.evals.models import in_order
from caravan.recipe.io import shown_value
from caravan.registry import RunRow, State
from caravan_dashboard.differences import value_at


def matching(
    runs: Sequence[RunRow], text: str, states: Sequence[str], recipes: Sequence[str]
) -> list[RunRow]:
    """The runs of which each word of `text` is part of the id, the owner or a tag, or is a field of
    the recipe (`dpo.beta=2`); empty `states` and `recipes` mean all."""
    words = text.lower().split()
    return [
        run
        for run in runs
        if (not states or run.state.value in states)
        and (not recipes or run.name in recipes)
        and all(_says(run, word) for word in words)
    ]


def _says(run: RunRow, word: str) -> bool:
    if any(word in field.lower() for field in (run.id, run.owner, *run.tags)):
        return True
    path, equals, value = word.partition("=")
    return bool(equals) and value == shown_value(value_at(run.recipe, path)).lower()


def as_table(runs: Sequence[RunRow], means: Mapping[str, Mapping[str, Headline]]) -> pd.DataFrame:
    """One line per run, with the mean of each model as a share."""
    models = in_order(model for run in runs for model in means.get(run.id, {}))
    return pd.DataFrame([
        {"run": run.id, "state": run.state.value, "recipe": run.name, "seed": run.seed,
         "owner": run.owner, "tags": " ".join(run.tags), "created_at": run.created_at.isoformat(),
         "started_at": run.started_at and run.started_at.isoformat(), "seconds": run.seconds}
        | {model: means[run.id][model].value for model in models if model in means.get(run.id, {})}
        for run in runs
    ])  # fmt: skip


def best_first(runs: Sequence[RunRow], means: Mapping[str, Headline | None]) -> list[RunRow]:
    """The runs by their mean; those without one last."""

    def mean(run: RunRow) -> float:
        found = means.get(run.id)
        return -inf if found is None or isnan(found.value) else found.value

    return sorted(runs, key=mean, reverse=True)


def can_resume(state: State) -> bool:
    return state in (State.FAILED, State.CANCELLED, State.INTERRUPTED)


def can_cancel(state: State) -> bool:
    return state in (State.PENDING, State.RUNNING)
