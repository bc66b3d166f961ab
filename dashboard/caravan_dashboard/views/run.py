"""One run: how far it is, what it measures, what it was made from, what people said about it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st
import yaml

from caravan.access import Role
from caravan.errors import without_traceback
from caravan.evals.headlines import headlines
from caravan.recipe.io import shown_value
from caravan.registry import LIVE, RunRow, StageRunRow, State
from caravan.stages.candidates import selected
from caravan_dashboard import differences, launching, library, lineage, palette, runs, signin, ui
from caravan_dashboard.curves import single_curve
from caravan_dashboard.live import live
from caravan_dashboard.markup import (
    Html,
    bar,
    caveat,
    facts,
    join,
    mono,
    page_link,
    pill,
    prose,
    state_pill,
    table,
    tag,
)  # fmt: skip
from caravan_dashboard.stages import (
    StageLine,
    by_interest,
    failed,
    newest_active,
    stage_lines,
)  # fmt: skip
from caravan_dashboard.text import DASH, duration, moment, percent, short_digest

REFRESH_SECONDS = 2
CHARTS_SHOWN = 4
COMPARED = 4
TILE_WIDTH = 160
WHOLE_RUN = "the whole run"
SECTIONS = ["Progress", "Lineage", "Recipe", "Notes"]


def main() -> None:
    run = ui.chosen_run("Run")
    active = run.state in LIVE
    header(run)
    section = st.segmented_control(
        "Section", SECTIONS, default=SECTIONS[0], key="view", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    if section == "Lineage":
        show_lineage(run)
    elif section == "Recipe":
        show_recipe(run)
    elif section == "Notes":
        annotate(run)
    else:
        show_failures(run)
        live(lambda: show_stages(run.id), REFRESH_SECONDS if active else None)
        show_metrics(run, active)


# --- header -------------------------------------------------------------------------------------


def header(run: RunRow) -> None:
    title, buttons = st.columns([4, 1], vertical_alignment="center")
    with title:
        ui.show(tag("h1", run.name, class_="cv-title"))
    with buttons.container(horizontal=True, horizontal_alignment="right"):
        actions(run)
    ui.show(
        facts([
            ("", state_pill(run.state)),
            ("run", mono(run.id)),
            ("seed", run.seed),
            ("started", f"{moment(run.started_at or run.created_at)} UTC"),
            ("duration", duration(run.seconds)),
            ("by", run.owner or DASH),
            *([("tags", join(pill(t) for t in run.tags))] if run.tags else []),
        ])
    )  # fmt: skip
    scores(run)


def scores(run: RunRow) -> None:
    means = headlines(library.registry().scores(run.id)).get(run.id)
    if not means:
        return
    row = st.container(horizontal=True)
    previous: float | None = None
    for model, found in means.items():
        change = None if previous is None else f"{100 * (found.value - previous):+.1f}"
        none = change is not None and float(change) == 0
        tile = row.container(width=TILE_WIDTH)  # tiles that do not fit go to the next line
        tile.metric(
            model.upper(),
            f"{percent(found.value)} %",
            "no change" if none else change and f"{change} points",
            delta_color="off" if none else "normal",
            delta_arrow="off" if none else "auto",
            border=True, height=140, help="Mean over the tasks of the evaluation",
        )  # fmt: skip
        if found.caveat:
            with tile:
                ui.show(caveat(found.caveat))
        previous = found.value
    with row.container(width=TILE_WIDTH):
        ui.show(page_link("All scores →", "evaluation", run=run.id))


def actions(run: RunRow) -> None:
    whose = not_theirs(run)
    if runs.can_cancel(run.state) and st.button(
        "Cancel", icon=":material/stop_circle:", disabled=whose is not None, help=whose
    ):
        ui.act("The run could not be cancelled.", lambda: launching.cancel(run.id))
    if runs.can_resume(run.state) and st.button(
        "Resume", type="primary", icon=":material/play_arrow:",
        disabled=whose is not None, help=whose or "Finished stages are not repeated",
    ):  # fmt: skip
        ui.act("The run could not be resumed.", lambda: launching.resume(run.id))


def not_theirs(run: RunRow) -> str | None:
    """Why the user may not change a run; None where they may."""
    mine = signin.current_user().may_change(run.owner)
    return None if mine else f"Only {run.owner} or an admin may"


# --- progress -----------------------------------------------------------------------------------


def show_failures(run: RunRow) -> None:
    lines = stage_lines(run, library.registry().stage_runs(run.id))
    stages = failed(lines)
    errors = [(stage.node, stage.error or "no error was recorded") for stage in stages]
    if not errors and run.state is State.FAILED:
        errors = [("the run", run.error or "no error was recorded")]
    for node, error in errors:
        with st.container(border=True):
            name = mono(node)
            ui.show(tag("div", tag("span", "Failed: ", class_="cv-wrong"), name))
            ui.show(tag("b", prose(without_traceback(error))))
            with st.expander("Traceback"):
                st.code(error, language=None, wrap_lines=True)
    if errors or run.state in (State.INTERRUPTED, State.CANCELLED):
        st.text("Put it right, then press Resume, or on the command line:"
                if errors else "Press Resume to continue, or on the command line:")  # fmt: skip
        st.code(f"caravan resume {run.id}", language=None)


def show_stages(run_id: str) -> None:
    run = library.registry().get_run(run_id)
    lines = stage_lines(run, library.registry().stage_runs(run_id))
    states = (run.state, *(line.state for line in lines))
    before = st.session_state.get(f"states {run_id}")
    st.session_state[f"states {run_id}"] = states
    if before is not None and before != states:
        st.rerun()  # what stands outside of this fragment (header, metrics) depends on it
    done = sum(line.state is State.SUCCEEDED for line in lines)
    st.progress(done / max(1, len(lines)), f"{done} of {len(lines)} stages done")
    ui.show(stage_table(lines))
    for line in lines:
        if line.run and line.run.warned:
            ui.show(tag("div", mono(line.node), f": {line.run.warned}", class_="cv-dim"))


def stage_table(lines: list[StageLine]) -> Html:
    longest = max((seconds(line.run) or 0.0 for line in lines), default=0.0) or 1.0
    rows = []
    for line in lines:
        stage = line.run
        took = seconds(stage)
        outputs = [
            tag("span", f"{name} ", mono(short_digest(digest)),
                title=digest, style="margin-right:.8rem;white-space:nowrap")
            for name, digest in (stage.outputs.items() if stage else ())
        ]  # fmt: skip
        timing = bar((took or 0.0) / longest, palette.STATE[line.state]) if took else ""
        rows.append([
            tag("span", line.node, class_="" if stage else "cv-dim"),
            join([state_pill(line.state), remark(line)]), duration(took), timing, join(outputs),
        ])  # fmt: skip
    return table(["Stage", "State", "Time", "", "Artifacts"], rows, "oonoo")


def remark(line: StageLine) -> Html:
    """What there is to say besides the state: how far, how often, what came of it, or that nothing
    ran."""
    stage = line.run
    if stage is None:
        return Html()
    if chosen := selected(stage):
        return join([dim(chosen), dim("reused") if stage.reused_from else Html()])
    if stage.reused_from:
        return dim("reused", f"its artifacts are those of stage run {stage.reused_from}")
    if line.state is State.RUNNING and stage.progress_total:
        done = f"{stage.progress_done:,} of {stage.progress_total:,}"
        return join([dim(done), bar(line.done, palette.STATE[State.RUNNING])])
    return dim(f"attempt {stage.attempt}") if stage.attempt > 1 else Html()


def dim(text: str, title: str | None = None) -> Html:
    return tag("span", f" {text}", class_="cv-dim", title=title)


def seconds(stage: StageRunRow | None) -> float | None:
    return None if stage is None or stage.reused_from else stage.seconds


# --- metrics ------------------------------------------------------------------------------------


def show_metrics(run: RunRow, active: bool) -> None:
    st.subheader("Metrics")
    measured = library.registry().measured_stages(run.id)
    if not measured:
        st.text("No stage has logged metrics yet. Training stages do, step by step.")
        return
    lines = stage_lines(run, library.registry().stage_runs(run.id))
    nodes = [line.node for line in lines if line.run and line.run.id in measured]
    first = newest_active(lines, nodes)
    left, right = st.columns([1, 2])
    node = left.selectbox(
        "Stage", nodes, index=nodes.index(first) if first else 0, key="stage", bind="query-params"
    )
    stage = next(line for line in lines if line.node == node)
    assert stage.run is not None
    stage_id = stage.run.id
    names = by_interest(library.registry().metric_names(stage_id))
    chosen = right.multiselect("Metrics", names, default=names[:CHARTS_SHOWN], key=f"m {node}")

    def draw() -> None:
        draw_metrics(stage_id, chosen)

    live(draw, REFRESH_SECONDS if active and stage.state is State.RUNNING else None)
    ui.show(page_link("Beside other runs →", "curves", run=run.id, stage=node))


def draw_metrics(stage_id: int, chosen: list[str]) -> None:
    columns = st.columns(2)
    for position, name in enumerate(chosen):
        columns[position % 2].altair_chart(single_curve(stage_id, name, position))


# --- lineage ------------------------------------------------------------------------------------


def show_lineage(run: RunRow) -> None:
    registry = library.registry()
    stages = registry.stage_runs(run.id)
    digests = {f"{s.node}/{name}": d for s in stages for name, d in s.outputs.items()}
    if not digests:
        ui.empty("No artifact yet. The graph grows with every stage that finishes.")
        return
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    focus = digests.get(
        left.selectbox("Trace", [WHOLE_RUN, *digests], key="trace", bind="query-params"), ""
    )
    everything = right.toggle("Evaluation and report", key="all", bind="query-params", value=False)
    if focus:
        edges = lineage.traced([
            *registry.lineage(focus, "in", run_id=run.id),
            *registry.lineage(focus, "out", run_id=run.id),
        ])  # fmt: skip
    else:
        edges = lineage.edges_of(stages)
    hidden = [s.node for s in stages if s.stage in ("evaluate", "report")]
    known = {edge.digest for edge in edges}
    rows = {digest: registry.artifact(digest) for digest in known}
    colours = {s.node: palette.STATE[s.state] for s in stages}
    st.graphviz_chart(
        lineage.dot(
            edges, rows, colours, hidden=() if everything or focus else hidden, highlighted=focus
        ),
        width="content",
        alt="Artifacts and the stages between them",
    )
    st.caption("Boxes are stages, notes are artifacts with the beginning of their digest.")
    st.code("caravan artifact show " + (focus[:12] if focus else "DIGEST"), language=None)


# --- recipe -------------------------------------------------------------------------------------


def show_recipe(run: RunRow) -> None:
    compared = [run, *ui.other_runs(run, COMPARED)]
    if len(compared) == 1:
        ui.show(page_link("Launch it with changes →", "launch", recipe=run.id))
        st.caption("Choose the runs to compare it with in the sidebar, under “Compare with”.")
        st.code(yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True), "yaml")
        return
    fields = differences.between([other.recipe for other in compared])
    rows: list[Sequence[object]] = [
        ["recipe", *(other.name for other in compared)],
        ["seed", *(other.seed for other in compared)],
        *([mono(path), *map(shown_value, values)] for path, values in fields.items()),
    ]
    ui.show(table(["Field", *(page_link(o.id, "run", run=o.id) for o in compared)], rows))
    st.caption("Every field in which the recipes differ, defaults included.")


# --- tags and notes -----------------------------------------------------------------------------


def annotate(run: RunRow) -> None:
    registry, user = library.registry(), signin.current_user()
    known = sorted({*run.tags, *(t for other in registry.list_runs(200) for t in other.tags)})
    with st.form("tags"):
        tags = st.multiselect("Tags", known, default=list(run.tags), accept_new_options=True,
                              key=f"tags {run.id}", help="Choose, or type a new one")  # fmt: skip
        whose = not_theirs(run)
        if st.form_submit_button("Save tags", disabled=whose is not None, help=whose):
            ui.act("The tags could not be saved.", lambda: launching.set_tags(run.id, tags))
    for note in registry.notes(run.id):
        with st.container(border=True):
            ui.show(
                facts(
                    [("", note.author), ("on", note.subject), ("", moment(note.created_at))]
                    if note.subject
                    else [("", note.author), ("", moment(note.created_at))]
                )
            )
            ui.show(prose(note.text))
            if not user.may_change(note.author):
                continue
            with st.expander("Edit"):
                text = st.text_area("Text", note.text, key=f"note {note.id}")
                left, right = st.columns(2)
                if left.button("Save", key=f"save {note.id}"):
                    ui.act("Not saved.", partial(launching.edit_note, note.id, text))
                if right.button("Delete", key=f"delete {note.id}"):
                    ui.act("Not deleted.", partial(launching.delete_note, note.id))
    with st.form("note", clear_on_submit=True):
        text = st.text_area(
            "New note", key="new note", placeholder="What should the next reader know?"
        )
        may_write = user.may(Role.LAUNCHER)
        why = None if may_write else "Takes the role launcher"
        if st.form_submit_button("Add note", disabled=not may_write, help=why):
            ui.act("The note could not be added.", lambda: launching.add_note(run.id, text))


main()
