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


WITH_SPREAD = 3
"""More series than that would be covered by each other's."""

Style: TypeAlias = Mapping[str, tuple[str, str]]
"""By series its colour and its kind of line, a key of `palette.LINES`."""


def curves(
    data: pd.DataFrame,
    title: str,
    x_title: str,
    style_of: Style,
    *,
    log: bool = False,
    height: int = 230,
) -> AltairChart:
    """`value` over `x` of each `series`; of a few, before what its points are the means of.

    Args:
        log: Where every value is positive.
    """
    log = log and not data.empty and data["low"].min() > 0
    names = list(style_of)
    colours, kinds = zip(*style_of.values(), strict=True)
    y_scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    y_format = "~s" if data["value"].abs().max() >= 1000 else "~g"
    base = alt.Chart(data, height=height).encode(
        alt.X("x:Q", title=x_title, scale=alt.Scale(nice=False),
              axis=alt.Axis(tickCount=5, format="~s")),
        alt.Color("series:N", legend=None,
                  scale=alt.Scale(domain=names, range=list(colours))),
    )  # fmt: skip
    lines = base.mark_line(strokeWidth=1.7, point=len(data) < 3 * len(names)).encode(
        alt.Y("value:Q", title=None, scale=y_scale, axis=alt.Axis(tickCount=4, format=y_format)),
        alt.StrokeDash("series:N", legend=None,
                       scale=alt.Scale(domain=names, range=[palette.LINES[k] for k in kinds])),
    )  # fmt: skip
    spread = base.mark_area(opacity=0.18, strokeWidth=0.7, strokeOpacity=0.6).encode(
        alt.Y("low:Q"), alt.Y2("high:Q"), stroke=alt.Color("series:N", legend=None)
    )
    about: list[Any] = [alt.Tooltip("steps:N", title="step"), alt.Tooltip("value:Q", format=".4~g")]
    if len(names) > 1:
        about.insert(0, alt.Tooltip("series:N", title="run"))
    if x_title != "step":
        about.append(alt.Tooltip("x:Q", title=x_title, format=",.4~g"))
    if (data["low"] < data["high"]).any():
        about += [alt.Tooltip(f"{end}:Q", format=".4~g") for end in ("low", "high")]
    # Around each point, since a line tells of its first one only.
    points = base.mark_circle(size=150, opacity=0).encode(alt.Y("value:Q"), tooltip=about)
    layers = [spread, lines, points] if len(names) <= WITH_SPREAD else [lines, points]
    return alt.layer(*layers).properties(title=alt.Title(title, fontSize=13, anchor="start"))


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
        alt.Chart(data, height=32 * data[category].nunique() + 75)
        .mark_bar(cornerRadius=2)
        .encode(
            alt.X(
                f"sum({value}):Q",
                title="rows",
                axis=alt.Axis(format=",d", tickCount=5, tickMinStep=1),
            ),
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
    several = max(map(len, order)) > 20  # labels of models of several runs
    tasks = list(dict.fromkeys(data["task"]))
    height = len(tasks) * (len(order) * 15 + 18) + 115
    base = alt.Chart(data, height=height).encode(
        alt.Y("task:N", title=None, sort=tasks, axis=alt.Axis(labelLimit=240, grid=True)),
        alt.YOffset("series:N", sort=order),
        alt.Color(
            "series:N",
            title=None,
            sort=order,
            scale=alt.Scale(domain=order, range=[colour_of[name] for name in order]),
            legend=alt.Legend(orient="top", labelLimit=400, columns=2 if several else len(order)),
        ),
    )
    bars = base.mark_rule(strokeWidth=3, opacity=0.4).encode(
        alt.X("low:Q", title="percent"), alt.X2("high:Q")
    )
    dots = base.mark_circle(size=80, opacity=1).encode(
        alt.X("value:Q"),
        tooltip=["task:N", "series:N", *(alt.Tooltip(f"{v}:Q", format=".1f") for v in
                                        ("value", "low", "high")), "n:Q"],
    )  # fmt: skip
    return bars + dots


def arms(means: pd.DataFrame, seeds: pd.DataFrame, title: str, x_title: str) -> AltairChart:
    """The mean of each arm of a sweep over the first axis, the seeds behind it, and its difference
    from the first arm, a dashed line, with its interval. Colours are given."""
    several = means["series"].nunique() > 1

    def place(data: pd.DataFrame) -> Any:
        base = alt.Chart(data, height=260).encode(
            alt.X("x:N", title=x_title or None, sort=list(dict.fromkeys(means["x"])),
                  axis=alt.Axis(labelAngle=0, labelLimit=140)),
            alt.Color("colour:N", scale=None),
        )  # fmt: skip
        order = list(dict.fromkeys(means["series"]))
        return base.encode(alt.XOffset("series:N", sort=order)) if several else base

    y_scale = alt.Scale(zero=False, padding=12)
    about = [alt.Tooltip("x:N", title=x_title or "arm"), *([alt.Tooltip("series:N")] * several)]
    line = (
        alt.Chart(means.head(1))
        .mark_rule(strokeDash=[4, 4], color="#8b94a3")
        .encode(alt.Y("value:Q", title=None, scale=y_scale))
    )
    bars = (
        place(means.dropna(subset=["low"]))
        .mark_rule(strokeWidth=3, opacity=0.45)
        .encode(alt.Y("low:Q", title=None, scale=y_scale), alt.Y2("high:Q"))
    )
    circles = (
        place(seeds)
        .mark_point(size=28, opacity=0.7, strokeWidth=1.2)
        .encode(
            alt.Y("value:Q", title=None, scale=y_scale),
            tooltip=[*about, alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".2f")],
        )
    )
    dots = (
        place(means)
        .mark_circle(size=120, opacity=1)
        .encode(
            alt.Y("value:Q", title=None, scale=y_scale),
            tooltip=[*about, alt.Tooltip("verdict:N"),
                     *(alt.Tooltip(f"{v}:Q", format=".2f") for v in ("value", "low", "high"))],
        )
    )  # fmt: skip
    chart = alt.layer(line, bars, circles, dots)
    return chart.properties(title=alt.Title(title, fontSize=13, anchor="start"))


def histogram(data: pd.DataFrame, title: str, colour: str) -> AltairChart:
    """Counts in bins that have been made already: `low`, `high`, `count`."""
    return (
        alt.Chart(data, height=190)
        .mark_bar(color=colour, opacity=0.85)
        .encode(
            alt.X("low:Q", bin="binned", title=title, axis=alt.Axis(tickMinStep=1, format="d")),
            alt.X2("high:Q"),
            alt.Y("count:Q", title="pairs", axis=alt.Axis(tickCount=4, tickMinStep=1)),
            tooltip=["low:Q", "high:Q", "count:Q"],
        )
    )


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each different name."""
    return dict(zip(dict.fromkeys(names), cycle(palette.SERIES), strict=False))
