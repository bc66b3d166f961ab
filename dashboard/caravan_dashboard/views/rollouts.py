"""Reinforcement learning: rewards over steps, and what the policy wrote for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS, read_rows
from caravan.data.records import RolloutGroup
from caravan.registry import StageRunRow, State
from caravan.stages.so_far import so_far
from caravan_dashboard import library, rollouts, ui
from caravan_dashboard.curves import single_curve
from caravan_dashboard.evaluation import as_text
from caravan_dashboard.live import live
from caravan_dashboard.markup import Html, facts, join, mono, prose, tag, turn
from caravan_dashboard.rows import read_rows_at
from caravan_dashboard.stages import by_interest
from caravan_dashboard.text import DASH

REFRESH_SECONDS = 3
CHARTS = 4
PAGE_SIZE = 3
KINDS = {"verified": "cv-right", "unchecked": None}
SAMPLES_SHOWN = 6  # completions of a group on the page; the rest are counted


def main() -> None:
    st.title("Rollouts")
    run = ui.chosen_run("Rollouts")
    stages = library.registry().stage_runs(run.id)
    stage = next((s for s in stages if s.stage == "rlvr"), None)
    if stage is None:
        ui.empty(
            "This run has no reinforcement learning: its recipe has none, or has not come to it."
        )
        return
    live(lambda: show_rewards(stage), REFRESH_SECONDS if stage.state is State.RUNNING else None)
    show_samples(stage)


def show_rewards(stage: StageRunRow) -> None:
    names = by_interest(library.registry().metric_names(stage.id))[:CHARTS]
    if not names:
        st.text("No step has been logged yet.")
        return
    columns = st.columns(2)
    for position, name in enumerate(names):
        columns[position % 2].altair_chart(single_curve(stage.id, name, position))


def show_samples(stage: StageRunRow) -> None:
    st.subheader("Samples")
    found = samples(stage)
    if found is None:
        st.text("The first samples show here after the first step.")
        return
    groups, read = found
    if "rollouts" not in stage.outputs:
        newer = "; reload the page for newer ones" if stage.state is State.RUNNING else ""
        st.caption(f"Of step {groups['step'].max()} and some steps before it{newer}.")
    steps = sorted(groups["step"].unique().tolist())
    left, middle, right, ordering, last = st.columns(5, vertical_alignment="bottom")
    skills = ui.chooser("Skill", sorted(groups["skill"].unique()), "skill", where=left)
    start, end = steps[0], steps[-1]
    if len(steps) > 1:
        start, end = middle.select_slider("Steps", steps, (start, end), key="steps",
                                          bind="query-params", on_change=ui.first_page)  # fmt: skip
    mixed = last.toggle(
        "Mixed only", key="mixed", bind="query-params",
        on_change=ui.first_page,
        help="Groups of different rewards; the others teach nothing: every advantage is zero",
    )  # fmt: skip
    order = ordering.selectbox("Order", list(rollouts.ORDERS), key="order", bind="query-params",
                               on_change=ui.first_page)  # fmt: skip
    chosen = rollouts.select(groups, skills, start, end, mixed)
    if digest := stage.outputs.get("rollouts"):
        chosen = ui.searched(chosen, digest, where=right)
    page = ui.page_of(rollouts.ordered(chosen, order), PAGE_SIZE, "groups")
    for group in read(page["offset"]):
        with st.container(border=True):
            show_group(group)


def samples(
    stage: StageRunRow,
) -> tuple[pd.DataFrame, Callable[[Iterable[int]], list[RolloutGroup]]] | None:
    """Facts of the groups that the stage kept, or has kept so far, and how they are read."""
    digest = stage.outputs.get("rollouts")
    if digest is not None:
        path = library.artifact(digest) / ROWS
        index = library.index(digest, rollouts.facts, rollouts.FACTS)
        return index, lambda offsets: read_rows_at(path, offsets, RolloutGroup)
    kept = so_far(library.settings(), stage.key)
    if kept is None:
        return None
    groups = list(read_rows(kept, RolloutGroup))  # at once: another file takes its place
    return rollouts.table(groups), lambda numbers: [groups[number] for number in numbers]


def show_group(group: RolloutGroup) -> None:
    count = len(group.completions)
    about: list[tuple[str, object]] = [
        ("step", group.step), ("", mono(group.prompt_id)),
        ("skill", group.skill), ("verifier", group.verifier or DASH),
        ("expected", as_text(group.ground_truth)),
    ]  # fmt: skip
    if count > SAMPLES_SHOWN:
        about.append(("", f"{SAMPLES_SHOWN} of {count} completions"))
    ui.show(join([facts(about), *(turn(m.role, m.content) for m in group.prompt)]))
    shown = min(count, SAMPLES_SHOWN)
    columns = st.columns(2 if shown in (2, 4) else min(3, shown))
    for number in range(shown):
        with columns[number % len(columns)]:
            ui.show(completion(group, number))


def completion(group: RolloutGroup, number: int) -> Html:
    reward, outcome = group.rewards[number], group.outcomes[number]
    kind = KINDS.get(outcome, "cv-wrong")
    advantage = group.advantages[number]
    score = [] if group.scores is None else [("score", f"{group.scores[number]:+.2f}")]
    about = facts([
        ("reward", tag("span", DASH if reward is None else f"{reward:g}", class_=kind)),
        *score,
        ("advantage", DASH if advantage is None else f"{advantage:+.2f}"),
        ("", outcome.replace("_", " ")), ("ended by", group.finish_reasons[number]),
    ])  # fmt: skip
    text = tag("div", prose(group.completions[number]), style="margin-top:.5rem")
    return tag("div", about, text, class_="cv-card", style="margin-bottom:.6rem")


main()
