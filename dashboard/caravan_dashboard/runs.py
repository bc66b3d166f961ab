"""What the list of runs shows of each."""

from __future__ import annotations

from collections.abc import Sequence

from caravan.registry import RunRow, State


def matching(
    runs: Sequence[RunRow], text: str, states: Sequence[str], recipes: Sequence[str]
) -> list[RunRow]:
    """The runs whose id, owner or a tag contains `text`; empty `states` and `recipes` mean all."""
    wanted = text.strip().lower()
    return [
        run
        for run in runs
        if (not states or run.state.value in states)
        and (not recipes or run.name in recipes)
        and any(wanted in field.lower() for field in (run.id, run.owner, *run.tags))
    ]


def can_resume(state: State) -> bool:
    return state in (State.FAILED, State.CANCELLED, State.INTERRUPTED)


def can_cancel(state: State) -> bool:
    return state in (State.PENDING, State.RUNNING)
