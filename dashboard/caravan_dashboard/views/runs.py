"""All runs: what they are, how far, and how well they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import streamlit as st

from caravan.evals.headlines import Headline, headlines
from caravan.evals.models import in_order
from caravan.recipe.io import shown_value
from caravan.registry import LIVE, SWEEP_TAG, Registry, RunRow, RunSearch, State
from caravan_dashboard import differences, library, runs, signin, ui
from caravan_dashboard.curves import MAX_RUNS
from caravan_dashboard.live import live
from caravan_dashboard.markup import Html, caveat, join, page_link, pill, state_pill, table, tag
from caravan_dashboard.palette import MODEL, model_colour
from caravan_dashboard.text import DASH, ago, duration, moment, percent

PAGE_SIZE = 25
SCORES_MOST = 5
SEARCH_CHARACTERS = 1000
"""Twice as many may be more words than SQLite takes conditions."""
ORDERS = {"Newest first": "", **{f"Best {name}": name for name in MODEL}}
REFRESH_SECONDS = 5
FIELDS_SHOWN = 2


def main() -> None:
    st.title("Runs")
    registry = library.registry()
    recipes = registry.run_names()
    if not recipes:
        ui.empty(
            "No run yet. Launch one from the Launch page, or on the command line:",
            "caravan run pipelines/recipes/pocket.yaml",
        )
        return
    search = filters(recipes)
    active = registry.find_runs(RunSearch(states=LIVE))
    live(lambda: list_runs(library.registry(), search), REFRESH_SECONDS if active else None)


def filters(recipes: Sequence[str]) -> RunSearch:
    left, middle, right, last = st.columns([3, 2, 2, 2])
    text = left.text_input(
        "Search", key="q", bind="query-params", on_change=ui.first_page,
        max_chars=SEARCH_CHARACTERS, placeholder="Run, owner, tag or dpo.beta=2",
        help="Runs that have every word; `dpo.beta=2` is a field of the recipe with its value",
    )  # fmt: skip
    states = ui.chooser("State", [s.value for s in State], "state", where=middle)
    chosen = ui.chooser("Recipe", recipes, "recipe", where=right)
    order = last.selectbox(
        "Order", list(ORDERS), key="order", bind="query-params", on_change=ui.first_page
    )
    return runs.searched(text or "", states, chosen, ORDERS[order])


def list_runs(registry: Registry, search: RunSearch) -> None:
    found = registry.find_runs(search)
    if not found:
        total = len(registry.find_runs(RunSearch()))
        st.text(f"None of the {total} runs matches. Clear a filter to see more.")
        return
    pages = -(-len(found) // PAGE_SIZE)
    number = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    page = registry.runs(found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])
    means = headlines(registry.scores(*(run.id for run in page)))
    ui.show(run_table(page, means, differences.by_run(page), datetime.now(UTC)))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Scores are means over the tasks of the evaluation, in percent.")
        ui.csv_button("runs", signin.in_session(lambda: runs.table_of(found, library.registry())))
    if len(page) > 1:
        first, *others = [run.id for run in page[:MAX_RUNS]]
        whose = "these runs" if len(page) <= MAX_RUNS else f"the first {MAX_RUNS}"
        link = page_link(f"Training curves of {whose} →", "curves", run=first, **{"with": others})
        few = [run.id for run in page[1:SCORES_MOST]]
        several = "these runs" if len(page) <= SCORES_MOST else f"the first {SCORES_MOST}"
        beside = page_link(f"Scores of {several} →", "evaluation", run=first, **{"with": few})
        recipes = page_link(f"Recipes of {several} →", "run", run=first, view="Recipe",
                            **{"with": few})  # fmt: skip
        ui.show(tag("div", link, beside, recipes, class_="cv-facts"))


def run_table(
    page: Sequence[RunRow],
    means: Mapping[str, Mapping[str, Headline]],
    fields: Mapping[str, differences.Fields],
    now: datetime,
) -> Html:
    models = in_order(model for run in page for model in means.get(run.id, {}))
    headers = ["Run", "State", "Recipe", "Seed", "Started", "Duration"]
    rows = []
    for run in page:
        tags = join(tag_pill(name) for name in run.tags)
        scores = [score_cell(means.get(run.id, {}).get(model), model) for model in models]
        started = tag("span", ago(run.started_at or run.created_at, now),
                      title=moment(run.started_at or run.created_at) + " UTC")  # fmt: skip
        rows.append([
            join([page_link(run.id, "run", run=run.id), " ", tags, own_fields(fields[run.id])]),
            state_pill(run.state),
            run.name, run.seed, started, duration(run.seconds), *scores,
        ])  # fmt: skip
    return table([*headers, *(m.upper() for m in models)], rows, "ooonon" + "n" * len(models))


def tag_pill(name: str) -> Html:
    if name.startswith(SWEEP_TAG):
        return page_link(pill(name), "sweeps", sweep=name)
    return pill(name)


def own_fields(fields: differences.Fields) -> Html:
    """In what the recipe differs from the others' of its name."""
    texts = [f"{path}={shown_value(value)}" for path, value in fields.items()]
    more = [f"+ {len(texts) - FIELDS_SHOWN} more"] if len(texts) > FIELDS_SHOWN else []
    line = "  ".join([*texts[:FIELDS_SHOWN], *more])
    return tag("div", line, class_="cv-path cv-dim", title="\n".join(texts)) if texts else Html()


def score_cell(found: Headline | None, model: str) -> object:
    if found is None:
        return DASH
    shown = percent(found.value)
    value = tag("span", shown, style=f"color:{model_colour(model)};font-weight:600")
    return join([value, caveat(found.caveat)])


main()
