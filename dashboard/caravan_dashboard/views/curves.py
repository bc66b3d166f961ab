"""Training curves of several runs over each other, with what differs between their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from caravan.recipe.io import shown_value
from caravan.registry import CurvePoint, RunRow, StageRunRow, State
from caravan_dashboard import charts, curves, differences, library, ui
from caravan_dashboard.live import live
from caravan_dashboard.markup import join, line_mark, mono, page_link, state_pill, table, tag
from caravan_dashboard.stages import by_interest

REFRESH_SECONDS = 10
FIELDS_SHOWN = 6
CHARTS_SHOWN = 4
ROWS_SHOWN, TABLE_HEIGHT = 6, 290
AXES = ["Step", "Time", "Tokens"]

Stages = Mapping[str, StageRunRow]
"""By run, the stage that is looked at, where it has metrics."""


def main() -> None:
    st.title("Training curves")
    run = ui.chosen_run("Training curves")
    runs = {run.id: run for run in (run, *ui.other_runs(run, curves.MAX_RUNS - 1))}
    measured = {run_id: measured_stages(run_id) for run_id in runs}
    nodes = list(dict.fromkeys(node for found in measured.values() for node in found))
    if not nodes:
        ui.empty("No stage has logged metrics yet. Training stages do, step by step.")
        return
    left, middle, right, last = st.columns([3, 3, 3, 2], vertical_alignment="bottom")
    node = left.selectbox("Stage", nodes, index=len(nodes) - 1, key="stage",
                          bind="query-params")  # fmt: skip
    axis = middle.segmented_control("Over", AXES, default=AXES[0], key="over", required=True,
                                    bind="query-params")  # fmt: skip
    weight = right.slider(
        "Smoothing", 0.0, 0.99, 0.0, 0.01, key="smoothing", bind="query-params",
        help="Weight of the points before; what was measured stays behind the curve",
    )  # fmt: skip
    log = last.toggle("Log scale", key="log", bind="query-params",
                      help="Of metrics that are positive throughout")  # fmt: skip
    stages = {run_id: found[node] for run_id, found in measured.items() if node in found}
    names = by_interest(name for found in last_steps(stages).values() for name in found)
    first = names[:CHARTS_SHOWN]
    chosen = st.multiselect("Metrics", names, key="metric", bind="query-params",
                            placeholder=", ".join(first)) or first  # fmt: skip
    style = curves.styles(list(runs))
    show_runs(list(runs.values()), stages, node, style)

    def draw() -> None:
        draw_curves(stages, chosen, axis, weight, log, style)

    active = any(stage.state is State.RUNNING for stage in stages.values())
    live(draw, REFRESH_SECONDS if active else None)


def measured_stages(run_id: str) -> dict[str, StageRunRow]:
    """The stages of a run that have metrics, by node."""
    known = set(library.registry().measured_stages(run_id))
    return {s.node: s for s in library.registry().stage_runs(run_id) if s.id in known}


def last_steps(stages: Stages) -> dict[str, dict[str, int]]:
    """By run, the last step of each metric."""
    return {run: library.registry().metric_names(stage.id) for run, stage in stages.items()}


# --- which curve is whose -----------------------------------------------------------------------


def show_runs(runs: Sequence[RunRow], stages: Stages, node: str, style: charts.Style) -> None:
    """The legend, with the fields of the recipes that differ."""
    fields = differences.between([run.recipe for run in runs], node)
    shown = list(fields)[:FIELDS_SHOWN]
    rows = []
    for i, run in enumerate(runs):
        stage = stages.get(run.id)
        state = state_pill(stage.state) if stage else tag("span", f"no {node} yet", class_="cv-dim")
        rows.append([
            line_mark(*style[run.id]), page_link(run.id, "run", run=run.id, stage=node), state,
            run.name, run.seed, *(shown_value(fields[path][i]) for path in shown),
        ])  # fmt: skip
    headers = ["", "Run", "State", "Recipe", "Seed", *map(mono, shown)]
    with st.container(height=TABLE_HEIGHT if len(runs) > ROWS_SHOWN else "content", border=False):
        ui.show(table(headers, rows))
    if len(runs) == 1:
        st.caption("Choose the runs to lay over this one in the sidebar, under “Compare with”.")
    elif len(fields) > len(shown):
        others = [run.id for run in runs[1:]]
        more = f"The recipes differ in {len(fields) - len(shown)} more fields →"
        ui.show(page_link(more, "run", run=runs[0].id, view="Recipe", **{"with": others}))


# --- curves -------------------------------------------------------------------------------------


def draw_curves(
    stages: Stages, chosen: Sequence[str], axis: str, weight: float, log: bool, style: charts.Style
) -> None:
    ends = last_steps(stages)

    def read(name: str) -> dict[str, Sequence[CurvePoint]]:
        return {run: curves.read(stages[run].id, name, last[name], len(stages))
                for run, last in ends.items() if name in last}  # fmt: skip

    tokens = read(curves.TOKENS) if axis == "Tokens" else {}
    uncounted = [run for run in stages if run not in tokens]
    if axis == "Tokens" and uncounted:
        left_out = join(map(mono, uncounted), ", ")
        ui.show(tag("div", "Left out, without a count of tokens: ", left_out, class_="cv-dim"))
    columns = st.columns(2 if len(chosen) > 1 else 1)
    for position, name in enumerate(chosen):
        found, x_title = read(name), axis.lower()
        if axis == "Time":
            data, x_title = curves.by_time(found)
        else:
            data = curves.by_tokens(found, tokens) if axis == "Tokens" else curves.by_step(found)
        chart = charts.curves(
            curves.smoothed(data, weight), name, x_title, style,
            log=log, height=230 if len(chosen) > 1 else 420,
        )  # fmt: skip
        columns[position % len(columns)].altair_chart(chart)


main()
