"""The charts, in one style. Data frames in, Altair charts out; no Streamlit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import altair as alt
import pandas as pd

from caravan_dashboard import palette

AltairChart: TypeAlias = Any
"""An `alt.Chart` or `alt.LayerChart`; most of Altair's own methods say Any as well."""


def line(data: pd.DataFrame, title: str, colour: str = palette.SERIES[0]) -> AltairChart:
    """`value` over `step`."""
    return (
        alt.Chart(data, title=alt.Title(title, fontSize=13, anchor="start"), height=160)
        .mark_line(color=colour, strokeWidth=1.6, point=len(data) < 3)
        .encode(
            alt.X("step:Q", title=None, axis=alt.Axis(tickCount=5, format="~s")),
            alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
            tooltip=["step:Q", alt.Tooltip("value:Q", format=".4g")],
        )
    )


def stacked(
    data: pd.DataFrame,
    category: str,
    value: str,
    colour: str,
    order: Sequence[str],
    colour_of: Mapping[str, str],
) -> AltairChart:
    """Horizontal bars of `value` by `category`, split by `colour`, in the order given. Without a
    legend: Vega cuts one that is wider than the chart."""
    groups = list(colour_of)
    return (
        alt.Chart(data, height=32 * data[category].nunique() + 40)
        .mark_bar(cornerRadius=2)
        .encode(
            alt.X(f"sum({value}):Q", title=None, axis=alt.Axis(format="~s", tickCount=5)),
            alt.Y(f"{category}:N", title=None, sort=list(order), axis=alt.Axis(labelLimit=220)),
            alt.Color(
                f"{colour}:N",
                title=None,
                sort=groups,
                scale=alt.Scale(domain=groups, range=list(colour_of.values())),
                legend=None,
            ),
            tooltip=[f"{category}:N", f"{colour}:N", f"{value}:Q"],
        )
    )


def heatmap(data: pd.DataFrame, x: str, y: str, value: str) -> AltairChart:
    """Shares in percent, written into coloured cells."""
    base = alt.Chart(data, height=34 * data[y].nunique() + 110).encode(
        alt.X(f"{x}:N", title=None, axis=alt.Axis(labelAngle=-30, labelLimit=160)),
        alt.Y(f"{y}:N", title=None, axis=alt.Axis(labelLimit=220)),
    )
    cells = base.mark_rect(cornerRadius=3, stroke="white").encode(
        alt.Color(f"{value}:Q", scale=alt.Scale(range=["#eef2f6", "#c2334d"]), legend=None),
        tooltip=[f"{y}:N", f"{x}:N", alt.Tooltip(f"{value}:Q", format=".2%")],
    )
    middle = float(data[value].max()) * 0.6
    text = base.mark_text(fontSize=12).encode(
        alt.Text(f"{value}:Q", format=".1%"),
        color=alt.condition(alt.datum[value] > middle, alt.value("white"), alt.value("#334155")),
    )
    return cells + text


def intervals(data: pd.DataFrame, colour_of: Mapping[str, str]) -> AltairChart:
    """By task, a dot with its 95 % interval for each series; `colour_of` also gives the order."""
    order = list(colour_of)
    tasks = list(dict.fromkeys(data["task"]))
    height = len(tasks) * (len(order) * 15 + 18) + 80
    base = alt.Chart(data, height=height).encode(
        alt.Y("task:N", title=None, sort=tasks, axis=alt.Axis(labelLimit=240, grid=True)),
        alt.YOffset("series:N", sort=order),
        alt.Color(
            "series:N",
            title=None,
            sort=order,
            scale=alt.Scale(domain=order, range=[colour_of[name] for name in order]),
            legend=alt.Legend(orient="top"),
        ),
    )
    bars = base.mark_rule(strokeWidth=3, opacity=0.4).encode(
        alt.X("low:Q", title=None), alt.X2("high:Q")
    )
    dots = base.mark_circle(size=80, opacity=1).encode(
        alt.X("value:Q"),
        tooltip=["task:N", "series:N", *(alt.Tooltip(f"{v}:Q", format=".1f") for v in
                                        ("value", "low", "high")), "n:Q"],
    )  # fmt: skip
    return bars + dots


def histogram(data: pd.DataFrame, title: str, colour: str) -> AltairChart:
    """Counts in bins that have been made already: `low`, `high`, `count`."""
    return (
        alt.Chart(data, height=190)
        .mark_bar(color=colour, opacity=0.85)
        .encode(
            alt.X("low:Q", bin="binned", title=title, axis=alt.Axis(tickMinStep=1, format="d")),
            alt.X2("high:Q"),
            alt.Y("count:Q", title=None, axis=alt.Axis(tickCount=4)),
            tooltip=["low:Q", "high:Q", "count:Q"],
        )
    )


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each different name."""
    return dict(zip(dict.fromkeys(names), cycle(palette.SERIES), strict=False))
