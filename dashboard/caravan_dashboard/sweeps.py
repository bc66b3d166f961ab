"""Sweeps as their page shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

import pandas as pd

from caravan.evals.sweeps import BETTER, UNKNOWN, WITHIN, WORSE, Arm, ArmScore
from caravan.recipe.io import shown_value
from caravan.registry import scale_of
from caravan_dashboard.palette import SERIES

FIRST = "first arm"
VERDICT = {FIRST: "#8b94a3", BETTER: "#15803d", WORSE: "#c2334d", WITHIN: "#2f7ed8",
           UNKNOWN: "#a16207"}  # fmt: skip


def axis_of(arms: Sequence[Arm]) -> tuple[str, list[str], list[str]]:
    """The field that charts are drawn over, and of each arm its value there and the others'; these
    are empty where the first field tells all arms apart."""
    if not arms[0].values:
        return "", [arm.runs[0].name for arm in arms], [""] * len(arms)
    title = next(iter(arms[0].values))
    values = [shown_value(arm.values[title]) for arm in arms]
    if len(set(values)) == len(arms):
        return title, values, [""] * len(arms)
    return title, values, ["  ".join(arm.labels[1:]) for arm in arms]


def colours(arms: Sequence[Arm], scores: Iterable[ArmScore]) -> dict[str, str]:
    """What the colours of charts stand for: other fields' values, or the verdicts that occur."""
    series = list(dict.fromkeys(axis_of(arms)[2]))
    if series != [""]:
        return dict(zip(series, cycle(SERIES), strict=False))
    occur = {verdict_of(score) for score in scores}
    return {verdict: colour for verdict, colour in VERDICT.items() if verdict in occur}


def verdict_of(score: ArmScore) -> str:
    return score.verdict or FIRST


def chart_rows(
    arms: Sequence[Arm], scores: Sequence[ArmScore]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of one task, a line for each arm that has a score, and one for each of its seeds; shares in
    per cent. `low` and `high` are where the difference from the first arm ends, laid on its mean.
    """
    _, values, series = axis_of(arms)
    colour_of = colours(arms, scores)
    scale, _ = scale_of(scores[0].metric)
    means, seeds = [], []
    for score, value, other in zip(scores, values, series, strict=True):
        if score.mean is None:
            continue
        verdict = verdict_of(score)
        colour = colour_of[other] if other else colour_of[verdict]
        where = {"x": value, "series": other, "colour": colour}
        ends = {}
        if score.difference and scores[0].mean is not None:
            ends = {"low": scale * (scores[0].mean + score.difference.low),
                    "high": scale * (scores[0].mean + score.difference.high)}  # fmt: skip
        means.append(where | {"value": scale * score.mean, "verdict": verdict} | ends)
        seeds += [where | {"seed": s, "value": scale * v} for s, v in score.by_seed.items()]
    columns = ["x", "series", "colour", "value"]
    return (
        pd.DataFrame(means, columns=[*columns, "verdict", "low", "high"]),
        pd.DataFrame(seeds, columns=[*columns, "seed"]),
    )


def as_table(scores: Iterable[ArmScore]) -> pd.DataFrame:
    """One line for each arm and task; shares are between 0 and 1."""
    return pd.DataFrame([
        {path: shown_value(value) for path, value in score.arm.values.items()}
        | {"task": score.task, "metric": score.metric, "seeds": len(score.by_seed),
           "mean": score.mean, "spread": score.spread, "verdict": score.verdict}
        | ({"difference": score.difference.value, "low": score.difference.low,
            "high": score.difference.high} if score.difference else {})
        for score in scores
    ])  # fmt: skip
