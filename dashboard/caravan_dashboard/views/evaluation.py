"""Scores with their uncertainty, what each stage changed, and the instances behind a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd
import streamlit as st

from caravan.evals.caveats import lacking, selected_by, selected_by_scores, without_spread
from caravan.evals.models import model_of
from caravan.evals.scoring import ScoredCompletion
from caravan.evals.stats import Difference
from caravan.recipe.io import shown_value
from caravan.registry import Registry, RunRow, ScoreRow
from caravan_dashboard import charts, differences, evaluation, library, signin, ui
from caravan_dashboard.evaluation import Column, Transition
from caravan_dashboard.markup import (
    Html,
    caveat,
    facts,
    join,
    mono,
    page_link,
    table,
    tag,
    turn,
)
from caravan_dashboard.palette import SERIES, model_colour
from caravan_dashboard.replies import answer, replies
from caravan_dashboard.rows import read_rows_at
from caravan_dashboard.text import DASH

PAGE_SIZE = 5
NOTHING = "nothing"
INSTANCES = "instances.jsonl"
OTHER_RUNS = 4
FIELDS_SHOWN = 4
VIEWS = ["Scores", "Instances"]


def main() -> None:
    st.title("Evaluation")
    run = ui.chosen_run("Evaluation")
    runs = [run, *ui.other_runs(run, OTHER_RUNS)]
    scores = [score for one in runs for score in library.registry().scores(one.id)]
    if not evaluation.columns(scores):
        ui.empty("No scores yet. They show here as soon as the first model has been evaluated.")
        return
    view = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True,
        label_visibility="collapsed", on_change=ui.first_page,
    )  # fmt: skip
    if view == "Instances":
        show_instances(scores, run.id)
    else:
        show_scores(scores, runs)


# --- scores -------------------------------------------------------------------------------------


def show_scores(scores: list[ScoreRow], runs: Sequence[RunRow]) -> None:
    if len(runs) > 1:
        show_differences(runs)
    columns = evaluation.columns(scores)
    models = list(dict.fromkeys(column.model for column in columns))
    several = len(runs) > 1
    wanted = st.pills(
        "Models", models, selection_mode="multi", default=models[-1:] if several else models,
        key="models several" if several else "models", label_visibility="collapsed",
    )  # fmt: skip
    chosen = [column for column in columns if column.model in wanted]
    if not chosen:
        st.text("Choose at least one model.")
        return
    ui.show(score_table(scores, chosen, several))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("In percent, ratings as given; in small type the 95 % confidence interval.")
        ui.csv_button("scores", signin.in_session(lambda: evaluation.as_table(scores)))
    for run in runs:
        if told := selected_by_scores(selected_by(run.recipe)):
            st.caption(f"{run.id}: {told}" if several else told)
    data = evaluation.interval_rows(scores, chosen)
    if not data.empty:
        st.altair_chart(charts.intervals(data, series_colours(chosen, several)))
    changes = evaluation.transitions(chosen)
    if changes:
        st.subheader("What changed")
        ui.show(change_table(scores, changes, runs))
        st.caption(
            "Percentage points (of ratings: points) on the same instances, with the 95 % interval "
            "of a paired bootstrap; coloured where it leaves out zero. Each leads to the replies "
            "that were gained or lost."
        )
    wins = evaluation.comparisons(scores)
    if wins:
        st.subheader("Judged against each other")
        ui.show(win_table(wins, several))


def show_differences(runs: Sequence[RunRow]) -> None:
    fields = differences.between([run.recipe for run in runs])
    shown = list(fields)[:FIELDS_SHOWN]
    ui.show(table(["Run", "Recipe", "Seed", *map(mono, shown)], [
        [page_link(run.id, "run", run=run.id), run.name, run.seed,
         *(shown_value(fields[path][i]) for path in shown)]
        for i, run in enumerate(runs)
    ]))  # fmt: skip
    others = [run.id for run in runs[1:]]
    link = f"All {len(fields)} differences of the recipes →"
    if len(fields) > len(shown):
        ui.show(page_link(link, "run", run=runs[0].id, view="Recipe", **{"with": others}))


def score_table(scores: Sequence[ScoreRow], chosen: Sequence[Column], several: bool) -> Html:
    rows = []
    for task, metric, suite in evaluation.tasks(scores):
        found = [evaluation.find(scores, column, task, metric) for column in chosen]
        best = max((s.value for s in found if s and not isnan(s.value)), default=None)
        rows.append(
            [task_name(task, f"{metric} · {suite}"), *(score_cell(score, best) for score in found)]
        )
    headers = [
        tag("span", c.label(several), style=f"color:{model_colour(c.model)}") for c in chosen
    ]
    return table(["Task", *headers], rows, "o" + "n" * len(chosen))


def task_name(task: str, about: str) -> Html:
    return join([task, tag("span", f" {about}", class_="cv-dim")])


def score_cell(score: ScoreRow | None, best: float | None) -> object:
    if score is None or isnan(score.value):
        return DASH
    value, low, high = (
        evaluation.shown_value(score.metric, v) for v in (score.value, score.low, score.high)
    )
    interval = tag("span", f" {low}–{high}", class_="cv-dim", style="font-size:.8em")
    shown = tag("b", value) if score.value == best else value
    return tag("span", shown, interval, caveat(lacking(score)), title=f"{score.n} instances")


def series_colours(chosen: Sequence[Column], several: bool) -> dict[str, str]:
    if not several:
        return {column.label(False): model_colour(column.model) for column in chosen}
    return {c.label(True): SERIES[i % len(SERIES)] for i, c in enumerate(chosen)}


def change_table(
    scores: Sequence[ScoreRow], changes: Sequence[Transition], runs: Sequence[RunRow]
) -> Html:
    several = len(runs) > 1

    def link(text: object, change: Transition, task: str, gained: bool) -> Html:
        """To the replies behind a change."""
        before, after = (column.label(several) for column in change)
        return page_link(
            text, "evaluation", run=runs[0].id, **{"with": [run.id for run in runs[1:]]},
            view="Instances", task=task, model=after, beside=before,
            which="Gained" if gained else "Lost",
        )  # fmt: skip

    rows = [
        [
            task_name(task, metric),
            *(change_cell(scores, pair, task, metric, link) for pair in changes),
        ]
        for task, metric, _ in evaluation.tasks(scores)
    ]
    headers = [f"{before.label(several)} → {after.label(several)}" for before, after in changes]
    return table(["Task", *headers], rows, "o" + "n" * len(changes))


def change_cell(
    scores: Sequence[ScoreRow],
    change: Transition,
    task: str,
    metric: str,
    link: Callable[[object, Transition, str, bool], Html],
) -> object:
    before, after = (evaluation.find(scores, column, task, metric) for column in change)
    if before is None or after is None:
        return DASH
    found = difference(library.registry(), before.id, after.id)
    if found is None:  # no instances were kept: the difference alone
        return evaluation.shown_difference(metric, after.value - before.value)
    if same := without_spread(found, evaluation.shown_difference(metric, found.value)):
        return tag("span", same, class_="cv-dim")
    kind = ("cv-up" if found.value > 0 else "cv-down") if found.significant else "cv-plain"
    low, value, high = (
        evaluation.shown_difference(metric, v) for v in (found.low, found.value, found.high)
    )
    return tag(
        "span", link(tag("b", value, class_=kind), change, task, found.value > 0),
        tag("span", f" {low} … {high}", class_="cv-dim", style="font-size:.8em"),
        title=f"{found.n} instances, p = {found.p_value:.3f}",
    )  # fmt: skip


def _difference(_registry: Registry, url: str, before: int, after: int) -> Any:
    values = (
        {row.instance_id: row.value for row in _registry.score_instances(score)}
        for score in (before, after)
    )
    return evaluation.paired_change(*values)


_cached_difference = library.cached(_difference, ttl=60, max_entries=2000, show_spinner=False)


def difference(registry: Registry, before: int, after: int) -> Difference | None:
    found = _cached_difference(registry, registry.url, before, after)
    assert found is None or isinstance(found, Difference)
    return found


def win_table(wins: Sequence[ScoreRow], several: bool) -> Html:
    rows = [
        [*([w.run_id] if several else []), w.task, w.metric, score_cell(w, None), w.n] for w in wins
    ]
    headers = [*(["Run"] if several else []), "Task", "Metric", "%", "Judged"]
    return table(headers, rows, "o" * (len(headers) - 2) + "nn")


# --- instances ----------------------------------------------------------------------------------


def show_instances(scores: Sequence[ScoreRow], run_id: str) -> None:
    columns = evaluation.columns(scores)
    several = len({column.run_id for column in columns}) > 1
    by_label = {column.label(several): column for column in columns}
    labels = list(by_label)
    latest, other = evaluation.first_shown(columns, run_id)
    besides = [NOTHING, *labels]
    first_beside = besides.index(other.label(several)) if other else 0
    names = list(dict.fromkeys(task for task, _, _ in evaluation.tasks(scores)))
    first, second, third = st.columns(3)
    task = first.selectbox("Task", names, key="task", bind="query-params", on_change=ui.first_page)
    model = second.selectbox("Model", labels, index=columns.index(latest), key="model",
                             bind="query-params", on_change=ui.first_page)  # fmt: skip
    beside = third.selectbox("Beside", besides, key="beside", bind="query-params",
                             index=first_beside, on_change=ui.first_page)  # fmt: skip
    shown = [label for label in dict.fromkeys((beside, model)) if label != NOTHING]
    digests = {label: evaluation_digest(scores, by_label[label], task) for label in shown}
    tables = {label: instances_of(digest, task) for label, digest in digests.items()}
    found = tables[model]
    if found is None:
        ui.empty(f"No instances are stored for {model}.")
        return
    compared = tables[beside] if beside not in (NOTHING, model) else None
    filters = evaluation.filters(found, compared is not None)
    left, right = st.columns([2, 1])
    which = left.segmented_control("Show", filters, default="All", key="which", required=True,
                                   bind="query-params", on_change=ui.first_page)  # fmt: skip
    found = evaluation.matching(found, compared, evaluation.FILTERS[which])
    found = ui.searched(found, digests[model] or "", INSTANCES, right)
    page = ui.page_of(found, PAGE_SIZE, "instances")
    marks = compared is not None and st.toggle("Mark differences", key="diff", bind="query-params")
    views = {
        label: completions(digest, rows, page["key"])
        for label, digest in digests.items()
        if digest is not None and (rows := tables[label]) is not None
    }
    for key in page["key"]:
        with st.container(border=True):
            show_instance(key, {label: found.get(key) for label, found in views.items()}, marks)


def evaluation_digest(scores: Sequence[ScoreRow], column: Column, task: str) -> str | None:
    wanted = (column.run_id, column.model, task)
    for score in scores:
        if (score.run_id, model_of(score.node), score.task) == wanted:
            return library.output(library.registry().stage_runs(column.run_id), score.node)
    return None


def instances_of(digest: str | None, task: str) -> pd.DataFrame | None:
    if digest is None or not (library.artifact(digest) / INSTANCES).exists():
        return None
    table = library.index(digest, evaluation.instance_facts, evaluation.INSTANCE_FACTS, INSTANCES)
    return evaluation.of_task(table, task)


def completions(
    digest: str, rows: pd.DataFrame, keys: Sequence[str]
) -> dict[str, ScoredCompletion]:
    there = [key for key in keys if key in rows.index]
    path = library.artifact(digest) / INSTANCES
    return dict(
        zip(there, read_rows_at(path, rows.loc[there, "offset"], ScoredCompletion), strict=True)
    )


def show_instance(
    key: str, completions: Mapping[str, ScoredCompletion | None], marks: bool
) -> None:
    known = next(completion for completion in completions.values() if completion)
    about: list[tuple[str, object]] = [("", mono(key))]
    if known.skill:
        about.append(("skill", known.skill))
    if known.ground_truth is not None:
        about.append(("expected", evaluation.as_text(known.ground_truth)))
    ui.show(join([facts(about), *(turn(m.role, m.content) for m in known.messages)]))
    columns = st.columns(len(completions))
    texts = replies(list(completions.values()), marks)
    for column, (label, completion), text in zip(columns, completions.items(), texts, strict=True):
        with column:
            ui.show(tag("div", *answer(label, completion, text), class_="cv-card"))


main()
