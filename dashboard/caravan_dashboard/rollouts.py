"""Groups of rollouts, and the metrics that tell how reinforcement learning goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from caravan.data.records import RolloutGroup

FACTS = ("step", "skill", "mean", "mixed")

FIRST = (
    "reward",
    "objective/verified",
    "objective/kl",
    "completions/mean_length",
    "loss",
    "entropy",
)
"""Metrics that a reader looks for first, in that order; `loss` stands for `loss/policy`, too."""


def facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    known = [reward for reward in row["rewards"] if reward is not None]
    return {
        "step": row["step"],
        "skill": row["skill"],
        "mean": sum(known) / len(known) if known else None,
        "mixed": len(set(known)) > 1,
    }


def table(groups: Sequence[RolloutGroup]) -> pd.DataFrame:
    """As an index of their file would be, with numbers for offsets."""
    lines = [{"offset": i, **facts(group.model_dump())} for i, group in enumerate(groups)]
    return pd.DataFrame(lines, columns=["offset", *FACTS])


def first_metrics(names: Iterable[str], count: int) -> list[str]:
    """`count` of the metrics: the ones looked for first, then the others by name."""

    def rank(name: str) -> tuple[int, str]:
        matches = [i for i, first in enumerate(FIRST) if f"{name}/".startswith(f"{first}/")]
        return (matches[0] if matches else len(FIRST), name)

    return sorted(names, key=rank)[:count]


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
