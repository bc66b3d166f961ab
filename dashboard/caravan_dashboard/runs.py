"""What the list of runs shows of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pandas as pd

from caravan.evals.headlines import Headline, headlines
from caravan.evals.models import in_order
from caravan.recipe.io import shown_value
from caravan.registry import LIVE, STOPPED, RecipeField, Registry, RunRow, RunSearch, State
from caravan_dashboard.differences import value_at

RUNS_AT_ONCE = 500


def searched(text: str, states: Sequence[str], recipes: Sequence[str], best: str) -> RunSearch:
    """The runs of which each word of `text` is part of the id, the owner or a tag, or is a field of
    the recipe (`dpo.beta=2`); empty `states` and `recipes` mean all."""
    words = text.split()
    fields = {word: field for word in words if (field := _field(word)) is not None}
    return RunSearch(
        states=[State(state) for state in states], names=recipes, best=best,
        words=[word for word in words if word not in fields], fields=list(fields.items()),
    )  # fmt: skip


def _field(word: str) -> RecipeField | None:
    path, equals, value = word.partition("=")
    section = re.split(r"[.\[]", path)[0].lower()
    if not equals or not section.isidentifier():
        return None
    return RecipeField(section, lambda found: _is(value_at({section: found}, path), value))


def _is(found: object, said: str) -> bool:
    """Whether a value is the one that is meant, which may be written another way: 1e-6, 2.0."""
    if isinstance(found, float):
        with suppress(ValueError):
            return shown_value(float(said)) == shown_value(found)
    return said.lower() in (str(found).lower(), shown_value(found).lower())


def table_of(run_ids: Sequence[str], registry: Registry) -> pd.DataFrame:
    """Of runs in that order, read in parts: recipes and scores of all might not fit in memory."""
    parts = []
    for first in range(0, len(run_ids), RUNS_AT_ONCE):
        ids = run_ids[first : first + RUNS_AT_ONCE]
        parts.append(as_table(registry.runs(ids), headlines(registry.scores(*ids))))
    return pd.concat(parts, ignore_index=True)


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


def can_resume(state: State) -> bool:
    return state in STOPPED


def can_cancel(state: State) -> bool:
    return state in LIVE
