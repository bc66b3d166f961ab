"""What several pages share: choosing the run, paging, empty states, tables.

Text from runs (recipes' names, prompts, completions, notes) is shown through `markup`, `st.code` or
widgets whose options are plain text, never through Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.errors import CaravanError, RegistryError
from caravan.registry import RunRow
from caravan_dashboard import library, rows
from caravan_dashboard.csv_file import as_csv
from caravan_dashboard.markup import Html

RECENT_RUNS = 200


def show(markup: Html) -> None:
    """Put escaped markup on the page."""
    st.html(markup)


def empty(message: str, hint: str = "") -> None:
    """Say that there is nothing here yet, and what would bring something."""
    with st.container(border=True):
        st.text(message)
        if hint:
            st.code(hint, language=None)


def act(sorry: str, action: Callable[[], object]) -> None:
    """Do what was asked for and draw the page anew, or say that it could not be done, and why."""
    try:
        action()
    except (CaravanError, OSError) as error:
        st.error(sorry)
        st.code(str(error), language=None, wrap_lines=True)
    else:
        st.rerun()


def csv_button(name: str, make: Callable[[], pd.DataFrame]) -> None:
    """A button that downloads a table as it is when the button is pressed."""
    st.download_button(
        "CSV", lambda: as_csv(make()), f"{name}.csv", "text/csv", key=f"csv {name}",
        icon=":material/download:", type="tertiary", on_click="ignore",
    )  # fmt: skip


def name_tab(page: str, run_id: str = "") -> None:
    """Name the browser's tab after the page and, where it is of one, its run."""
    st.set_page_config(page_title=f"{page} · {run_id or 'Caravan'}")


def looked_at() -> str | None:
    """The run of the URL, else the one last looked at, else the latest, if there is any."""
    known = st.query_params.get("run") or st.session_state.get("last_run")
    latest = None if known else library.registry().latest_run()
    return latest.id if latest else known


def chosen_run(page: str) -> RunRow:
    """The run that is looked at, with a picker.

    Stops the page, which has this name, where there is none.
    """
    recent = library.registry().list_runs(RECENT_RUNS)
    if not recent:
        empty("No run yet. Launch one from the Launch page, or on the command line:",
              "caravan run pipelines/recipes/pocket.yaml")  # fmt: skip
        st.stop()
    try:
        run = library.registry().get_run(looked_at() or recent[0].id)
    except RegistryError as error:
        st.error("The run in the address cannot be shown.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        st.session_state.pop("last_run", None)
        st.stop()
    st.query_params["run"] = run.id
    st.session_state["last_run"] = run.id
    name_tab(page, run.id)
    by_id = {other.id: other for other in [*recent, run]}
    st.session_state["run_picker"] = run.id
    st.sidebar.selectbox("Run", list(by_id), key="run_picker", on_change=_pick_run,
                         format_func=lambda id: described(by_id[id]))  # fmt: skip
    return run


def described(run: RunRow) -> str:
    """A run in a list to choose from; its id begins with the name of its recipe."""
    return " · ".join([run.id, run.state.value, *run.tags])


def other_runs(run: RunRow, most: int) -> list[RunRow]:
    """The runs to compare with that are chosen, those of the address included."""
    registry = library.registry()
    known = {other.id: other for other in registry.list_runs(RECENT_RUNS)}
    for run_id in st.query_params.get_all("with"):
        if run_id not in known:
            with suppress(RegistryError):
                known[run_id] = registry.get_run(run_id)
    options = [other for other in known if other != run.id]
    asked = [other for other in st.query_params.get_all("with") if other in options]
    # Bound to the address, the widget would write there what it shows, state and tags included.
    st.session_state["with_picker"] = asked[:most]
    chosen = st.sidebar.multiselect(
        "Compare with", options, key="with_picker", on_change=_pick_others, max_selections=most,
        placeholder="Other runs", format_func=lambda id: described(known[id]),
    )  # fmt: skip
    return [known[other] for other in chosen]


def _pick_others() -> None:
    st.query_params["with"] = st.session_state["with_picker"]


def _pick_run() -> None:
    st.query_params["run"] = st.session_state["run_picker"]
    if "page" in st.session_state:
        st.session_state["page"] = 1


def first_page() -> None:
    """Go back to the first page of rows: for filters' `on_change`."""
    st.session_state["page"] = 1


def searched(table: pd.DataFrame, digest: str, file: str = ROWS, where: Any = st) -> pd.DataFrame:
    """A field to search in, and the rows of the artifact's file that hold what is searched for."""
    text = where.text_input(
        "Search", key="q", bind="query-params", on_change=first_page, placeholder="Text or id"
    ).strip()
    return table[table["offset"].isin(library.search(digest, text, file))] if text else table


def page_of(table: pd.DataFrame, page_size: int, label: str) -> pd.DataFrame:
    """A pager over `table`, and the rows of the page that is chosen; the page is in the URL."""
    pages = rows.page_count(len(table), page_size)
    if st.session_state.get("page", 1) > pages:
        st.session_state["page"] = pages
    left, right = st.columns([3, 2], vertical_alignment="center")
    with right.container(horizontal=True, horizontal_alignment="right"):
        number = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    shown = rows.page_of(table, number, page_size)
    start = (min(number, pages) - 1) * page_size
    if len(table):
        left.text(f"{start + 1}–{start + len(shown)} of {len(table):,} {label}")
    else:
        left.text(f"No {label} match.")
    return shown


def chooser(
    label: str, options: Sequence[str], key: str, *, help: str | None = None, where: Any = st
) -> list[str]:
    """A filter over several values, bound to the URL; nothing chosen means all."""
    return list(
        where.multiselect(
            label, options, key=key, bind="query-params", on_change=first_page, help=help,
            placeholder="All",
        )
    )  # fmt: skip
