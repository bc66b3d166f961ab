"""What the list of runs shows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan

from caravan.evals.headlines import Headline
from caravan.registry import RunRow, State
from caravan_dashboard.differences import shown, value_at


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
    return bool(equals) and value == shown(value_at(run.recipe, path)).lower()


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
