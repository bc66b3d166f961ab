"""Preference pairs: what was preferred to what, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.data.records import Pair, RatedCompletion
from caravan.registry import State
from caravan_dashboard import charts, library, preferences, ui
from caravan_dashboard.diff import word_diff
from caravan_dashboard.markup import (
    Html,
    bar,
    facts,
    join,
    marked,
    mono,
    pill,
    prose,
    table,
    tag,
    turn,
)
from caravan_dashboard.palette import SERIES, STATE
from caravan_dashboard.rows import read_rows_at
from caravan_dashboard.text import DASH, count, percent

PAGE_SIZE = 5
WON = STATE[State.SUCCEEDED]


def main() -> None:
    st.title("Preference pairs")
    run = ui.chosen_run("Preference pairs")
    stages = library.registry().stage_runs(run.id)
    digest = library.output(stages, "pair", "pairs")
    if digest is None:
        ui.empty("This run has no preference pairs: its recipe makes none, or has not come to it.")
        return
    pairs = library.index(digest, preferences.facts, preferences.FACTS)
    shown = filters(pairs, digest)
    if shown.empty:
        st.text(f"None of the {len(pairs):,} pairs matches. Clear a filter to see more.")
        return
    with st.expander("Who wins, and does length decide?", expanded=True):
        statistics(shown)
    page = ui.page_of(shown, PAGE_SIZE, "pairs")
    judged = library.output(stages, "judge", "ratings")
    with st.container(horizontal=True):
        marks = st.toggle("Mark differences", value=True, key="diff", bind="query-params")
        why = st.toggle(
            "Ratings one by one", key="ratings", bind="query-params", disabled=judged is None,
            help="Of each aspect, with the judge's reasons",
        )  # fmt: skip
    read = list(read_rows_at(library.artifact(digest) / ROWS, page["offset"], Pair))
    ratings = ratings_of(judged, [pair.id for pair in read]) if why and judged else []
    for pair in read:
        with st.container(border=True):
            show_pair(pair, marks, ratings)


def ratings_of(digest: str, prompts: Sequence[str]) -> list[RatedCompletion]:
    """What the judge said about every reply to these prompts."""
    found = library.index(digest, preferences.rating_facts, preferences.RATING_FACTS)
    offsets = found.loc[found["prompt_id"].isin(prompts), "offset"]
    return read_rows_at(library.artifact(digest) / ROWS, offsets, RatedCompletion)


def filters(pairs: pd.DataFrame, digest: str) -> pd.DataFrame:
    left, middle, right, last = st.columns(4)
    skills = ui.chooser("Skill", sorted(pairs["skill"].unique()), "skill", where=left)
    models = sorted({*pairs["chosen_model"], *pairs["rejected_model"]})
    chosen = ui.chooser("Model", models, "model", help="On either side", where=middle)
    largest = float(pairs["margin"].max()) if len(pairs) else 0.0
    least = min(0.0, float(pairs["margin"].min())) if len(pairs) else 0.0
    margin = right.slider(
        "Rating margin of at least", least, max(0.25, largest), least, 0.25, key="margin",
        bind="query-params", on_change=ui.first_page,
    )  # fmt: skip
    return ui.searched(preferences.select(pairs, skills, chosen, margin), digest, where=last)


def statistics(pairs: pd.DataFrame) -> None:
    left, right = st.columns(2, gap="large")
    bias = preferences.length_bias(pairs)
    with left:
        wins = preferences.win_table(pairs)
        ui.show(table(["Model", "Chosen", "Rejected", "Wins", ""], [
            [model, count(won), count(lost), f"{percent(share, 0)} %", bar(share, WON)]
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


def show_pair(pair: Pair, marks: bool, ratings: Sequence[RatedCompletion]) -> None:
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
        ("chosen", "good", pair.chosen_model, pair.chosen_rating, pair.chosen, chosen),
        ("rejected", "bad", pair.rejected_model, pair.rejected_rating, pair.rejected, rejected),
    )
    for column, side in zip(st.columns(2), sides, strict=True):
        name, kind, model, rated, reply, text = side
        by = model or preferences.UNKNOWN
        head = facts([("", pill(name, kind)), ("", by), ("rating", rating(rated))])
        reasons = verdict(preferences.rated(ratings, pair.id, model, reply))
        with column:
            ui.show(
                tag(
                    "div", head, tag("div", text, style="margin-top:.5rem"), reasons,
                    class_="cv-card",
                )
            )  # fmt: skip


def verdict(found: RatedCompletion | None) -> Html:
    """The rating of each aspect, and why."""
    if found is None:
        return Html()
    given = [
        (aspect.replace("_", " "), DASH if value is None else value)
        for aspect, value in found.ratings.items()
    ]
    why = tag("div", prose(found.rationale), class_="cv-dim") if found.rationale else Html()
    return tag("div", facts(given), why, style="margin-top:.6rem")


def rating(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


main()
