"""A sweep: each arm over its seeds, against the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from caravan.evals.caveats import without_spread
from caravan.evals.sweeps import (
    BETTER,
    UNKNOWN,
    WORSE,
    Arm,
    ArmScore,
    arms_of,
    compare,
    evaluated_models,
    notes,
    sweep_runs,
)
from caravan.registry import LIVE, Registry, SweepRow
from caravan_dashboard import charts, evaluation, library, signin, sweeps, ui
from caravan_dashboard.curves import MAX_RUNS
from caravan_dashboard.live import live
from caravan_dashboard.markup import (
    Html,
    caveat,
    join,
    legend,
    mono,
    page_link,
    state_pill,
    table,
    tag,
)
from caravan_dashboard.text import DASH

REFRESH_SECONDS = 10
CHARTS_SHOWN = 4
SCORES_MOST = 5
KIND = {BETTER: "cv-right", WORSE: "cv-wrong", UNKNOWN: "cv-plain"}


def main() -> None:
    st.title("Sweeps")
    known = {sweep.tag: sweep for sweep in library.registry().sweeps()}
    chosen = st.query_params.get("sweep") or next(iter(known), None)
    if chosen is None:
        ui.empty("No sweep yet. One is started on the command line:",
                 "caravan sweep pocket --over dpo.beta=1,2,5 --over seed=17,18,19")  # fmt: skip
        return
    runs = sweep_runs(chosen, library.registry())
    known.setdefault(chosen, SweepRow(chosen, runs[0].name, len(runs)))
    # Bound to the address, the widget would write there what it shows.
    st.session_state["sweep_picker"] = chosen
    st.selectbox(
        "Sweep", list(known), key="sweep_picker", on_change=pick, label_visibility="collapsed",
        format_func=lambda one: f"{one} · {known[one].name} · {known[one].runs} runs",
    )  # fmt: skip
    ui.name_tab("Sweeps", chosen)
    scores = library.registry().scores(*(run.id for run in runs))
    models = evaluated_models(scores)
    model = models and st.segmented_control(
        "Model", models, default=models[-1], key="model", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    active = any(run.state in LIVE for run in runs)
    live(lambda: show(chosen, model or ""), REFRESH_SECONDS if active else None)


def pick() -> None:
    st.query_params["sweep"] = st.session_state["sweep_picker"]


def show(sweep: str, model: str) -> None:
    runs = sweep_runs(sweep, library.registry())
    arms = arms_of(runs)
    scores = library.registry().scores(*(run.id for run in runs))
    found = compare(arms, scores, model, instances)
    if found:
        show_scores(arms, found)
    else:
        ui.empty("No scores yet. They show here as soon as a run has evaluated its first model.")
    st.subheader("Runs")
    ui.show(run_table(arms))
    first, *others = [run.id for run in runs]
    if others:
        ui.show(tag("div", *(
            page_link(text, page, run=first, **{"with": others[: most - 1]})
            for text, page, most in (
                ("Training curves →", "curves", MAX_RUNS), ("Scores →", "evaluation", SCORES_MOST),
            )
        ), class_="cv-facts"))  # fmt: skip


def show_scores(arms: Sequence[Arm], found: Sequence[ArmScore]) -> None:
    by_task: dict[str, list[ArmScore]] = {}
    for score in found:
        by_task.setdefault(score.task, []).append(score)
    names = list(by_task)
    chosen = st.multiselect("Tasks", names, key="task", placeholder=", ".join(names[:CHARTS_SHOWN]),
                            label_visibility="collapsed") or names[:CHARTS_SHOWN]  # fmt: skip
    ui.show(legend(sweeps.colours(arms, found)))
    columns = st.columns(2)
    for i, name in enumerate(chosen):
        means, seeds = sweeps.chart_rows(arms, by_task[name])
        if not means.empty:
            title = sweeps.axis_of(arms)[0]
            columns[i % 2].altair_chart(charts.arms(means, seeds, name, title))
    st.caption(
        "Large dots are means over the seeds, small circles the seeds. A bar is the difference "
        "from the first arm, the dashed line, with its 95 % interval: one that does not reach the "
        "line is more than noise."
    )
    ui.show(score_table(arms, by_task))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Means ± standard deviations over the seeds, in percent, ratings as given; "
                   "below, the difference from the first arm.")  # fmt: skip
        ui.csv_button("sweep", signin.in_session(lambda: sweeps.as_table(found)))
    for note in notes(arms, found):
        st.caption(note)


def score_table(arms: Sequence[Arm], by_task: Mapping[str, Sequence[ArmScore]]) -> Html:
    rows = [
        [
            scored_arm(arm, [scores[i] for scores in by_task.values()]),
            *(score_cell(scores[i]) for scores in by_task.values()),
        ]
        for i, arm in enumerate(arms)
    ]
    return table(["Arm", *by_task], rows, "o" + "n" * len(by_task))


def scored_arm(arm: Arm, scores: Sequence[ArmScore]) -> Html:
    """With how many of its runs have scores, if not all of them."""
    fewest, asked = min(len(score.by_seed) for score in scores), len(arm.runs)
    return join([arm_name(arm), caveat(f"{fewest} of {asked} seeds" if fewest < asked else "")])


def arm_name(arm: Arm) -> Html:
    return join([tag("div", mono(label)) for label in arm.labels])


def score_cell(score: ArmScore) -> object:
    if score.mean is None:
        return DASH
    shown = partial(evaluation.shown_value, score.metric)
    spread = "" if score.spread is None else f" ± {shown(score.spread)}"
    return join([
        tag("b", shown(score.mean)), tag("span", spread, class_="cv-dim"),
        difference(score), caveat(score.caveat),
    ])  # fmt: skip


def difference(score: ArmScore) -> Html:
    if (found := score.difference) is None:
        return Html()
    value, low, high = (
        evaluation.shown_difference(score.metric, v) for v in (found.value, found.low, found.high)
    )
    text = without_spread(found, value) or f"{value} [{low}, {high}]"
    kind = KIND.get(score.verdict, "cv-dim")
    return tag("div", text, tag("div", score.verdict), class_=kind, style="font-size:.8em")


def run_table(arms: Sequence[Arm]) -> Html:
    seeds = list(dict.fromkeys(run.seed for arm in arms for run in arm.runs))
    rows = []
    for arm in arms:
        of_seed = {run.seed: run for run in arm.runs}
        cells = [
            tag("span", page_link(state_pill(run.state), "run", run=run.id), title=run.id)
            if (run := of_seed.get(seed)) else DASH
            for seed in seeds
        ]  # fmt: skip
        rows.append([arm_name(arm), *cells])
    return table(["Arm", *(f"seed {seed}" for seed in seeds)], rows)


def _instances(_registry: Registry, url: str, score_id: int) -> dict[str, float]:
    return {row.instance_id: row.value for row in _registry.score_instances(score_id)}


_cached: Any = library.cached(_instances, ttl=60, max_entries=4000, show_spinner=False)


def instances(score_id: int) -> Mapping[str, float]:
    registry = library.registry()
    found: dict[str, float] = _cached(registry, registry.url, score_id)
    return found


main()
