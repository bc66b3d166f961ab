"""Groups of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from caravan.data.records import RolloutGroup

FACTS = ("step", "skill", "mean", "mixed", "words")
ORDERS = {
    "By step": None,
    "Highest reward": ("mean", False),
    "Lowest reward": ("mean", True),
    "Longest": ("words", False),
}
"""Column that groups are sorted by, and whether its lowest come first."""


def facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    known = [reward for reward in row["rewards"] if reward is not None]
    return {
        "step": row["step"],
        "skill": row["skill"],
        "mean": sum(known) / len(known) if known else None,
        "mixed": len(set(known)) > 1,
        "words": max(len(text.split()) for text in row["completions"]),
    }


def table(groups: Sequence[RolloutGroup]) -> pd.DataFrame:
    """As an index of their file would be, with numbers for offsets."""
    lines = [{"offset": i, **facts(group.model_dump())} for i, group in enumerate(groups)]
    return pd.DataFrame(lines, columns=["offset", *FACTS])


def select(
    groups: pd.DataFrame, skills: Sequence[str], start: int, end: int, mixed: bool
) -> pd.DataFrame:
    """Groups of the steps and skills; `mixed` keeps those whose rewards are not all the same."""
    keep = groups["step"].between(start, end)
    if skills:
        keep &= groups["skill"].isin(skills)
    if mixed:
        keep &= groups["mixed"]
    return groups[keep]


def ordered(groups: pd.DataFrame, order: str) -> pd.DataFrame:
    """The groups in one of `ORDERS`, equal ones as they were."""
    if (by := ORDERS[order]) is None:
        return groups
    column, ascending = by
    return groups.sort_values(column, ascending=ascending, kind="stable")
