"""Metrics of training as curves, those of several runs over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from caravan.registry import CurvePoint, Registry
from caravan_dashboard import charts, library, palette
from caravan_dashboard.charts import AltairChart, Style

MAX_POINTS = 300
"""Points of one curve that go to the browser."""
MAX_POINTS_OF_CHART = 3000
MAX_RUNS = 20
TOKENS = "num_tokens"
"""The metric that counts the tokens trained on so far."""

COLUMNS = ["series", "x", "steps", "value", "low", "high"]


def read(stage_id: int, name: str, last_step: int, of_runs: int) -> Sequence[CurvePoint]:
    """A metric as far as it is logged, for a chart of so many runs; read anew when there are more
    steps."""
    registry = library.registry()
    points = min(MAX_POINTS, MAX_POINTS_OF_CHART // of_runs)
    found: Sequence[CurvePoint] = _cached(registry, registry.url, stage_id, name, last_step, points)
    return found


def _read(
    _registry: Registry, url: str, stage_id: int, name: str, last_step: int, points: int
) -> Sequence[CurvePoint]:
    return _registry.curve(stage_id, name, points)


_cached = library.cached(_read, ttl=300, max_entries=2000, show_spinner="Reading the curves …")


def single_curve(stage_id: int, name: str, position: int) -> AltairChart:
    """The chart of one metric of one stage run, the newest points included."""
    points = library.registry().curve(stage_id, name, MAX_POINTS)
    colour = palette.SERIES[position % len(palette.SERIES)]
    return charts.curves(by_step({"": points}), name, "step", {"": (colour, "solid")})


def styles(names: Sequence[str]) -> Style:
    """A colour for each; where there are no more colours, another kind of line."""
    looks = product(palette.LINES, palette.SERIES)
    return {name: (colour, kind) for name, (kind, colour) in zip(names, looks, strict=False)}


# --- the same points over steps, time and tokens ------------------------------------------------


def by_step(curves: Mapping[str, Sequence[CurvePoint]]) -> pd.DataFrame:
    return _table([(s, float(p.first_step), p) for s, points in curves.items() for p in points])


def by_time(curves: Mapping[str, Sequence[CurvePoint]]) -> tuple[pd.DataFrame, str]:
    """Over the time since the first step, and the axis with its unit."""
    lines = [
        (series, (point.at - points[0].at).total_seconds(), point)
        for series, points in curves.items()
        for point in points
    ]
    longest = max((seconds for _, seconds, _ in lines), default=0.0)
    unit, size = next(
        (u for u in (("hours", 3600), ("minutes", 60)) if longest > 2 * u[1]), ("seconds", 1)
    )
    title = f"{unit} since the first step"
    return _table([(series, seconds / size, point) for series, seconds, point in lines]), title


def by_tokens(
    curves: Mapping[str, Sequence[CurvePoint]], tokens: Mapping[str, Sequence[CurvePoint]]
) -> pd.DataFrame:
    """Over the tokens trained on; curves without a count of them are left out."""
    lines = []
    for series, points in curves.items():
        if counted := tokens.get(series):
            steps = [point.first_step for point in counted]
            at = np.interp([p.first_step for p in points], steps, [p.low for p in counted])
            lines += [(series, float(x), point) for x, point in zip(at, points, strict=True)]
    return _table(lines)


def _table(lines: Sequence[tuple[str, float, CurvePoint]]) -> pd.DataFrame:
    rows = [
        (series, x, _steps(point), point.mean, point.low, point.high) for series, x, point in lines
    ]
    return pd.DataFrame(rows, columns=COLUMNS).replace([math.inf, -math.inf], math.nan)


def _steps(point: CurvePoint) -> str:
    if point.first_step == point.last_step:
        return f"{point.first_step:,}"
    return f"{point.first_step:,}–{point.last_step:,}"


def smoothed(table: pd.DataFrame, weight: float) -> pd.DataFrame:
    """With each value a mean over it and those before it, whose weights fall by `weight` from point
    to point."""
    if not weight or table.empty:
        return table
    means = table.groupby("series", sort=False)["value"].transform(
        lambda values: values.ewm(alpha=1 - weight).mean().where(values.notna())
    )
    return table.assign(value=means)
