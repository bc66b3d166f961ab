"""Preference pairs: what was preferred to what, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.data.records import Pair, RatedCompletion
from caravan.evals.agreement import Agreement, agreement
from caravan.evals.stats import Interval
from caravan.registry import Choice, PairRatingRow, State
from caravan_dashboard import charts, library, preferences, rating, ui
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
VIEWS = ["Overview", "Rate"]
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
    ratings = library.registry().pair_ratings(digest)
    view = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    if view == "Rate":
        rating.show(pairs, digest, ratings)
    else:
        overview(pairs, digest, ratings, library.output(stages, "judge", "ratings"))


def overview(
    pairs: pd.DataFrame, digest: str, ratings: Sequence[PairRatingRow], judged: str | None
) -> None:
    shown = filters(pairs, digest, ratings)
    if shown.empty:
        st.text(f"None of the {len(pairs):,} pairs matches. Clear a filter to see more.")
        return
    with st.expander("Who wins, and does length decide?", expanded=True):
        statistics(shown)
    if ratings:
        ids = set(shown["id"])
        whose = "the judge" if judged else "the pairs"
        with st.expander(f"Do people agree with {whose}?", expanded=True):
            people(agreement(r for r in ratings if r.pair_id in ids), whose)
    page = ui.page_of(shown, PAGE_SIZE, "pairs")
    with st.container(horizontal=True):
        marks = st.toggle("Mark differences", value=True, key="diff", bind="query-params")
        why = st.toggle(
            "Ratings one by one", key="ratings", bind="query-params", disabled=judged is None,
            help="Of each aspect, with the judge's reasons",
        )  # fmt: skip
    read = list(read_rows_at(library.artifact(digest) / ROWS, page["offset"], Pair))
    verdicts = verdicts_of(judged, [pair.id for pair in read]) if why and judged else []
    for pair in read:
        said = [(r.person, r.choice) for r in ratings if r.pair_id == pair.id]
        with st.container(border=True):
            show_pair(pair, marks, verdicts, said)


def verdicts_of(digest: str, prompts: Sequence[str]) -> list[RatedCompletion]:
    """What the judge said about every reply to these prompts."""
    found = library.index(digest, preferences.rating_facts, preferences.RATING_FACTS)
    offsets = found.loc[found["prompt_id"].isin(prompts), "offset"]
    return read_rows_at(library.artifact(digest) / ROWS, offsets, RatedCompletion)


def filters(pairs: pd.DataFrame, digest: str, ratings: Sequence[PairRatingRow]) -> pd.DataFrame:
    left, middle, right, *rated, last = st.columns(5 if ratings else 4)
    skills = ui.chooser("Skill", sorted(pairs["skill"].unique()), "skill", where=left)
    models = sorted({*pairs["chosen_model"], *pairs["rejected_model"]})
    chosen = ui.chooser("Model", models, "model", help="On either side", where=middle)
    largest = float(pairs["margin"].max()) if len(pairs) else 0.0
    least = min(0.0, float(pairs["margin"].min())) if len(pairs) else 0.0
    margin = right.slider(
        "Rating margin of at least", least, max(0.25, largest), least, 0.25, key="margin",
        bind="query-params", on_change=ui.first_page,
    )  # fmt: skip
    for column in rated:
        which = column.selectbox("People", preferences.PEOPLE, key="people", bind="query-params",
                                 on_change=ui.first_page)  # fmt: skip
        pairs = preferences.of_people(pairs, which, ratings)
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


def people(found: Agreement, whose: str) -> None:
    ui.show(table(["Person", "Rated", "Ties", "Skipped", f"Agrees with {whose}"], [
        [person.person, count(person.rated), count(person.counts.get("tie", 0)),
         count(person.counts.get("skip", 0)), share(person.with_judge)]
        for person in found.people
    ], "onnnn"))  # fmt: skip
    alpha = DASH if found.alpha is None else f"{found.alpha:.2f}"
    ui.show(facts([
        (f"people with {whose}", share(found.with_judge)),
        ("people with each other", share(found.among_people)),
        ("Krippendorff’s α", alpha),
    ]))  # fmt: skip
    st.caption(
        f"With 95 % intervals. A tie counts for nobody beside {whose}; α is 1 where people always "
        "say the same, 0 where they do as often as by chance."
    )


def share(found: Interval | None) -> Html:
    if found is None:
        return Html(DASH)
    low, high = percent(found.low), percent(found.high)
    about = tag("span", f" {low}–{high}, {count(found.n)} pairs", class_="cv-dim")
    return join([tag("b", f"{percent(found.value)} %"), about])


def show_pair(
    pair: Pair,
    marks: bool,
    verdicts: Sequence[RatedCompletion],
    said: Sequence[tuple[str, Choice]],
) -> None:
    ui.show(
        join([
            facts([
                ("", mono(pair.id)), ("skill", pair.skill),
                ("source", pair.source),
                ("margin", points(pair.margin if pair.chosen_rating is not None else None)),
                *said,
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
        head = facts([("", pill(name, kind)), ("", by), ("rating", points(rated))])
        reasons = verdict(preferences.rated(verdicts, pair.id, model, reply))
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


def points(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


main()
