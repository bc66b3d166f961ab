"""Where the training rows come from, what was left out and why, and the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.data.records import Conversation
from caravan.registry import StageRunRow
from caravan.release.facts import trained_by_source
from caravan.stages.decontaminate import Evidence
from caravan_dashboard import charts, library, mix, ui
from caravan_dashboard.evaluation import as_text
from caravan_dashboard.markup import bar, facts, join, legend, mono, prose, table, turn
from caravan_dashboard.palette import SERIES
from caravan_dashboard.rows import read_rows_at
from caravan_dashboard.text import DASH, count, percent

PAGE_SIZE = 8
EVIDENCE_PAGE_SIZE = 20
VIEWS = ["Overview", "Contamination", "Rows"]
DATASETS = {
    "In the mix": "mix",
    "After decontamination": "decontaminate",
    "Synthesised": "synthesize",
    "After curation": "curate",
}
STEPS = {
    "Available": "Rows of the sources",
    "Curated": "Rows without duplicates",
    "Clean": "Rows without those of evaluation tasks, with the synthesised ones",
    "In the mix": "Rows that were drawn for SFT",
    "Trained on": "Rows that SFT trained on",
}
Document = Mapping[str, Any] | None


def main() -> None:
    st.title("Data mix")
    run = ui.chosen_run("Data mix")
    stages = library.registry().stage_runs(run.id)
    card = document(stages, "curate", "card", "card.json")
    overlap = document(stages, "decontaminate", "evidence", "overlap.json")
    mixed = document(stages, "mix", "report", "mix.json")
    if not (card or overlap or mixed):
        ui.empty("This run has no data: its recipe reads none, or has not come to it.")
        return
    view = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True,
        label_visibility="collapsed", on_change=ui.first_page,
    )  # fmt: skip
    if view == "Contamination":
        contamination(stages, overlap)
    elif view == "Rows":
        browse(stages)
    else:
        overview(card, overlap, mixed, trained_by_source(stages))


def document(stages: list[StageRunRow], node: str, name: str, file: str) -> Document:
    digest = library.output(stages, node, name)
    found = library.read_json(library.artifact(digest) / file) if digest else None
    return found if isinstance(found, dict) else None


# --- overview -----------------------------------------------------------------------------------


def overview(
    card: Document, overlap: Document, mixed: Document, trained: Mapping[str, int] | None
) -> None:
    numbers = mix.totals(card, overlap, mixed, trained)
    for column, (name, about), value in zip(st.columns(5), STEPS.items(), numbers, strict=True):
        column.metric(name, DASH if value is None else count(value), border=True, help=about)

    sources = mix.source_table(card, overlap, mixed, trained)
    amount = "trained on" if trained else "in the mix" if mixed else "curated"
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("Sources")
        order = sources.sort_values(amount, ascending=False)["source"].tolist()
        bars(sources, "source", amount, "skill", order)
    with right:
        for title, field in (("Skills", "by_skill"), ("Licences", "by_license")):
            st.subheader(title)
            totals = mix.counts((mixed or card or {}).get(field, {}))
            whole = max(1, int(totals["rows"].sum()))
            ui.show(table(["", "Rows", "%", ""], [
                [name, count(n), percent(n / whole, 0), bar(n / whole, SERIES[0])]
                for name, n in totals.itertuples(index=False)
            ], "onno"))  # fmt: skip

    st.subheader("From source to training")
    ui.show(table(
        ["Source", "Skill", "Licence", *STEPS],
        [[*line[:3], *(DASH if pd.isna(n) else count(int(n)) for n in line[3:])]
         for line in sources.itertuples(index=False, name=None)], "ooonnnnn",
    ))  # fmt: skip
    left_out = (mixed or {}).get("left_out") or []
    if left_out:
        ui.show(facts([("not in the mix:", join(left_out, ", "))]))

    dropped = mix.drops(card, overlap)
    if not dropped.empty:
        st.subheader("Left out, by reason")
        order = list(dict.fromkeys(dropped["reason"]))
        bars(dropped, "reason", "rows", "source", order)


def bars(data: pd.DataFrame, category: str, value: str, colour: str, order: list[str]) -> None:
    colour_of = charts.colours(data[colour])
    st.altair_chart(charts.stacked(data, category, value, colour, order, colour_of))
    if len(colour_of) > 1:
        ui.show(legend(colour_of))


# --- contamination ------------------------------------------------------------------------------


def contamination(stages: list[StageRunRow], overlap: Document) -> None:
    digest = library.output(stages, "decontaminate", "evidence")
    if overlap is None or digest is None:
        ui.empty("Decontamination has not finished yet.")
        return
    st.text(
        f"A training row is dropped when its {overlap['ngram_size']}-grams cover more than "
        f"{overlap['max_coverage']:.0%} of an evaluation prompt's tokens; a source is dropped when "
        f"it does so to more than {overlap['max_source_overlap']:.0%} of a task's instances."
    )
    shares = mix.shares(overlap)
    if shares.empty:
        st.text("No training row overlaps an evaluation prompt.")
        return
    st.subheader("Instances of a task that a source contains")
    st.altair_chart(charts.heatmap(shares, "task", "source", "share"))
    for source, tasks in overlap.get("dropped_sources", {}).items():
        ui.show(facts([("dropped whole:", source), ("because of", join(tasks, ", "))]))
    st.subheader("Evidence")
    found = library.index(digest, mix.row_facts, mix.EVIDENCE_FACTS, "evidence.jsonl")
    left, middle, right = st.columns(3)
    found = filtered(found, "source", "Source", left)
    found = filtered(found, "task", "Task", middle)
    found = ui.searched(found, digest, "evidence.jsonl", right)
    page = ui.page_of(found, EVIDENCE_PAGE_SIZE, "matches")
    path = library.artifact(digest) / "evidence.jsonl"
    ui.show(table(
        ["Training row", "Task", "Instance", "Covered", "What they share"],
        [[mono(e.row_id), e.task, mono(e.instance_id), f"{percent(e.coverage, 0)} %",
          prose(e.matched_text)]
         for e in read_rows_at(path, page["offset"], Evidence)], "ooono",
    ))  # fmt: skip


def filtered(table: pd.DataFrame, column: str, label: str, where: Any) -> pd.DataFrame:
    chosen = ui.chooser(label, sorted(table[column].unique()), column, where=where)
    return table[table[column].isin(chosen)] if chosen else table


# --- rows ---------------------------------------------------------------------------------------


def browse(stages: list[StageRunRow]) -> None:
    digests = {
        label: digest
        for label, node in DATASETS.items()
        if (digest := library.output(stages, node, "dataset") or library.output(stages, node))
    }
    columns = st.columns(4)
    label = columns[0].selectbox(
        "Rows", list(digests), key="rows", bind="query-params", on_change=ui.first_page
    )
    found = library.index(digests[label], mix.row_facts, mix.ROW_FACTS)
    found = filtered(found, "source", "Source", columns[1])
    found = filtered(found, "skill", "Skill", columns[2])
    found = ui.searched(found, digests[label], where=columns[3])
    page = ui.page_of(found, PAGE_SIZE, "rows")
    for row in read_rows_at(library.artifact(digests[label]) / ROWS, page["offset"], Conversation):
        with st.container(border=True):
            show_row(row)


def show_row(row: Conversation) -> None:
    about: list[tuple[str, object]] = [
        ("", mono(row.id)), ("skill", row.skill), ("licence", row.license),
    ]  # fmt: skip
    if row.verifier:
        about.append(("verifier", row.verifier))
    if row.ground_truth is not None:
        about.append(("expected", as_text(row.ground_truth)))
    if row.persona:
        about.append(("persona", row.persona))
    ui.show(join([facts(about), *(turn(m.role, m.content) for m in row.messages)]))


main()
