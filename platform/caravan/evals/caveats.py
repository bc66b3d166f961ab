"""What stands beside a number that would otherwise say more than is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from caravan.evals.models import MODELS

MANY = 0.2
"""Share of the replies above which what they lack is told beside the score."""
_ROUNDING = 1e-12


class Estimate(Protocol):
    """A difference or another number with its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


class Replies(Protocol):
    """Shares of the replies behind a score."""

    @property
    def truncated(self) -> float: ...
    @property
    def too_long(self) -> float: ...
    @property
    def undecided(self) -> float: ...


def lacking(replies: Replies) -> str:
    """`cut off: 100 %`, of the replies that reached the limit, of the prompts that left no room for
    one, and of the replies that nobody could decide about; empty where they are few."""
    parts = (
        ("cut off", replies.truncated),
        ("prompt too long", replies.too_long),
        ("undecided", replies.undecided),
    )
    return ", ".join(f"{what}: {100 * share:.0f} %" for what, share in parts if share > MANY)


def selected_by(recipe: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tasks by which a run selects the policy of a stage, by the stage; none of one that takes
    the last."""
    found = {stage: (recipe.get(stage) or {}).get("select") or {} for stage in MODELS}
    return {stage: list(select["tasks"]) for stage, select in found.items() if select.get("tasks")}


def selected_by_scores(selections: Mapping[str, Sequence[str]]) -> str:
    """What is to be known of the scores of policies on the tasks that they were selected by; empty
    where none was."""
    return " ".join(
        f"{stage.upper()}'s policy was selected by its scores on {', '.join(tasks)}: there its "
        "scores, and what they gain, are on average too high, and their intervals do not say by "
        "how much."
        for stage, tasks in selections.items()
    )


def without_spread(difference: Estimate, shown: str) -> str:
    """A difference that is the same on all instances, in words: the bootstrap's interval is then a
    point, which says nothing of how sure the difference is. Empty for any other.

    Args:
        shown: The difference as a number.
    """
    if difference.high - difference.low > _ROUNDING:
        return ""
    if abs(difference.value) < _ROUNDING:
        return f"no difference on any of the {difference.n}"
    return f"{shown} on each of the {difference.n}"
