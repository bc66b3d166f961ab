"""Preference pairs: what was preferred to what, side by side."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.data.records import Pair
from caravan_dashboard import charts, library, preferences, ui
from caravan_dashboard.diff import word_diff
from caravan_dashboard.markup import bar, facts, join, marked, mono, pill, prose, table, tag, turn
from caravan_dashboard.palette import SERIES, STATE
from caravan_dashboard.rows import read_rows_at
from caravan_dashboard.text import DASH, count, percent

PAGE_SIZE = 5
CHOSEN, REJECTED = STATE["succeeded"], STATE["failed"]  # type: ignore[index]  # states are strings


def main() -> None:
    st.title("Preference pairs")
    run = ui.chosen_run()
    digest = library.output(library.registry().stage_runs(run.id), "pair", "pairs")
    if digest is None:
        ui.empty("This run has no preference pairs: its recipe makes none, or has not come to it.")
        return
    pairs = library.index(digest, preferences.facts, preferences.FACTS)
    shown = filters(pairs)
    if shown.empty:
        st.text(f"None of the {len(pairs):,} pairs matches. Clear a filter to see more.")
        return
    with st.expander("Who wins, and does length decide?", expanded=True):
        statistics(shown)
    page = ui.page_of(shown, PAGE_SIZE, "pairs")
    marks = st.toggle("Mark differences", value=True, key="diff", bind="query-params")
    for pair in read_rows_at(library.artifact(digest) / ROWS, page["offset"], Pair):
        with st.container(border=True):
            show_pair(pair, marks)


def filters(pairs: pd.DataFrame) -> pd.DataFrame:
    left, middle, right = st.columns(3)
    skills = ui.chooser("Skill", sorted(pairs["skill"].unique()), "skill", where=left)
    models = sorted({*pairs["chosen_model"], *pairs["rejected_model"]})
    chosen = ui.chooser("Model", models, "model", help="On either side", where=middle)
    largest = float(pairs["margin"].max()) if len(pairs) else 0.0
    least = min(0.0, float(pairs["margin"].min())) if len(pairs) else 0.0
    margin = right.slider(
        "Rating margin of at least", least, max(0.25, largest), least, 0.25, key="margin",
        bind="query-params", on_change=ui.first_page,
    )  # fmt: skip
    return preferences.select(pairs, skills, chosen, margin)


def statistics(pairs: pd.DataFrame) -> None:
    left, right = st.columns(2, gap="large")
    bias = preferences.length_bias(pairs)
    with left:
        wins = preferences.win_table(pairs)
        ui.show(table(["Model", "Chosen", "Rejected", "Wins", ""], [
            [model, count(won), count(lost), f"{percent(share, 0)} %", bar(share, CHOSEN)]
            for model, won, lost, share in wins.itertuples(index=False)
        ], "onnno"))  # fmt: skip
    with right:
        st.altair_chart(
            charts.histogram(
                preferences.length_histogram(pairs), "words of chosen − words of rejected",
                SERIES[1],
            )
        )  # fmt: skip
        st.text(
            f"The chosen reply is the longer one in {bias.chosen_longer:.0%} of {len(pairs):,} "
            f"pairs, by {bias.mean_difference:+.1f} words on average."
        )


def show_pair(pair: Pair, marks: bool) -> None:
    ui.show(
        join([
            facts([
                ("", mono(pair.id)), ("skill", pair.skill),
                ("source", pair.source),
                ("margin", rating(pair.margin if pair.chosen_rating is not None else None)),
            ]),
            *(turn(m.role, m.content) for m in pair.prompt),
        ])
    )  # fmt: skip
    rejected, chosen = prose(pair.rejected), prose(pair.chosen)
    if marks:
        left, right = word_diff(pair.chosen, pair.rejected)
        chosen, rejected = marked(left, "chosen"), marked(right, "rejected")
    sides = (
        ("chosen", CHOSEN, pair.chosen_model, pair.chosen_rating, chosen),
        ("rejected", REJECTED, pair.rejected_model, pair.rejected_rating, rejected),
    )
    for column, (name, colour, model, rated, text) in zip(st.columns(2), sides, strict=True):
        by = model or preferences.UNKNOWN
        head = facts([("", pill(name, colour)), ("", by), ("rating", rating(rated))])
        with column:
            ui.show(tag("div", head, tag("div", text, style="margin-top:.5rem"), class_="cv-card"))


def rating(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


main()
