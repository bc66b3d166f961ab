"""What can be asked of the registry. Each function takes a session and gives back plain rows."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session, aliased

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.rows import (
    RECIPE_FILES,
    SWEEP_TAG,
    ArtifactRow,
    Backend,
    Choice,
    CurvePoint,
    Direction,
    LineageEdge,
    MetricRow,
    NoteRow,
    PairRatingRow,
    RunRow,
    ScoreInstanceRow,
    ScoreRow,
    StageRunRow,
    SweepRow,
)
from caravan.registry.search import is_in
from caravan.registry.states import LIVE, State

# --- runs ---------------------------------------------------------------------------------------


def run(session: Session, run_id: str, stale_after_seconds: float) -> RunRow:
    """The run of that id, or of the one id that begins with it.

    Raises:
        RegistryError: no run, or more than one, is meant.
    """
    found = session.get(m.Run, run_id)
    if found is None:
        pattern = run_id.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") + "%"
        matches = session.scalars(
            select(m.Run).where(m.Run.id.like(pattern, escape="\\")).order_by(m.Run.id).limit(3)
        ).all()
        if not matches or not run_id:
            raise RegistryError(f"no run {run_id!r}; `caravan runs` lists them")
        if len(matches) > 1:
            names = ", ".join(match.id for match in matches)
            raise RegistryError(f"{run_id!r} may mean several runs: {names}, ...; write more of it")
        found = matches[0]
    return _run_rows(session, [found], stale_after_seconds)[0]


def runs(
    session: Session,
    stale_after_seconds: float,
    *,
    limit: int | None = 100,
    state: State | None = None,
    name: str | None = None,
    owner: str | None = None,
    tag: str | None = None,
) -> list[RunRow]:
    """Runs, newest first."""
    query = select(m.Run).order_by(m.Run.created_at.desc(), m.Run.id.desc())
    if state is not None:
        query = query.where(is_in(state, stale_after_seconds))
    if name is not None:
        query = query.where(m.Run.name == name)
    if owner is not None:
        query = query.where(m.Run.owner == owner)
    if tag is not None:
        query = query.join(m.Tag, m.Tag.run_id == m.Run.id).where(m.Tag.name == tag)
    return _run_rows(session, session.scalars(query.limit(limit)).all(), stale_after_seconds)


def latest_run(session: Session, stale_after_seconds: float) -> RunRow | None:
    """The run that was started last: those of a sweep wait behind the one that is executed."""
    started = func.coalesce(m.Run.started_at, m.Run.created_at)
    query = select(m.Run).order_by(started.desc(), m.Run.id.desc()).limit(1)
    found = _run_rows(session, session.scalars(query).all(), stale_after_seconds)
    return found[0] if found else None


def runs_of_ids(
    session: Session, run_ids: Sequence[str], stale_after_seconds: float
) -> list[RunRow]:
    """Those of the runs that are there, in that order."""
    found = session.scalars(select(m.Run).where(m.Run.id.in_(run_ids))).all()
    rows = {row.id: row for row in _run_rows(session, found, stale_after_seconds)}
    return [rows[run_id] for run_id in run_ids if run_id in rows]


def run_names(session: Session) -> list[str]:
    return list(session.scalars(select(m.Run.name).distinct().order_by(m.Run.name)))


def _run_rows(session: Session, found: Sequence[m.Run], stale_after_seconds: float) -> list[RunRow]:
    ids = [r.id for r in found]
    tags: dict[str, list[str]] = {}
    for tag in session.scalars(select(m.Tag).where(m.Tag.run_id.in_(ids)).order_by(m.Tag.name)):
        tags.setdefault(tag.run_id, []).append(tag.name)
    live = [r.id for r in found if r.state in LIVE]
    beats = dict(
        session.execute(
            select(m.StageRun.run_id, func.max(m.StageRun.heartbeat_at))
            .where(m.StageRun.run_id.in_(live))
            .group_by(m.StageRun.run_id)
        )
        .tuples()
        .all()
    )
    rows = []
    for r in found:
        # A run lives as long as its launcher or one of its stages does.
        signs = [t for t in (r.heartbeat_at, beats.get(r.id)) if t is not None]
        heartbeat = max(signs, default=None)
        rows.append(
            RunRow(
                id=r.id, name=r.name, seed=r.seed, owner=r.owner, recipe=r.recipe,
                recipe_digest=r.recipe_digest, recipe_dir=r.recipe_dir, created_at=r.created_at,
                started_at=r.started_at, finished_at=r.finished_at, heartbeat_at=heartbeat,
                error=r.error, tags=tuple(tags.get(r.id, ())),
                backend=cast(Backend, r.backend), backend_run_id=r.backend_run_id,
                caravan_version=r.caravan_version, paused_seconds=r.paused_seconds,
                # On a cluster a run may wait for a node for hours; its backend knows its state.
                state=r.state if r.backend_run_id else
                _derived(r.state, heartbeat or r.created_at, stale_after_seconds),
            )
        )  # fmt: skip
    return rows


def _derived(state: State, heartbeat: object, stale_after_seconds: float) -> State:
    if state not in LIVE:
        return state
    stale = m.now() - timedelta(seconds=stale_after_seconds) > heartbeat  # type: ignore[operator]
    return State.INTERRUPTED if stale else state


# --- stage runs ---------------------------------------------------------------------------------


def stage_runs(session: Session, run_id: str, stale_after_seconds: float) -> list[StageRunRow]:
    """The stage runs of a run, in the order in which they were first opened."""
    query = select(m.StageRun).where(m.StageRun.run_id == run_id).order_by(m.StageRun.id)
    return _stage_rows(session, session.scalars(query).all(), stale_after_seconds)


def stage_run(session: Session, stage_run_id: int, stale_after_seconds: float) -> StageRunRow:
    found = session.get(m.StageRun, stage_run_id)
    if found is None:
        raise RegistryError(f"no stage run {stage_run_id}")
    return _stage_rows(session, [found], stale_after_seconds)[0]


def finished_with_key(session: Session, key: str, stale_after_seconds: float) -> StageRunRow | None:
    """The newest stage run that did the work of `key` itself and succeeded."""
    query = (
        select(m.StageRun)
        .where(m.StageRun.key == key, m.StageRun.state == State.SUCCEEDED)
        .where(m.StageRun.reused_from.is_(None))
        .order_by(m.StageRun.finished_at.desc(), m.StageRun.id.desc())
        .limit(1)
    )
    rows = _stage_rows(session, session.scalars(query).all(), stale_after_seconds)
    return rows[0] if rows else None


def _stage_rows(
    session: Session, found: Sequence[m.StageRun], stale_after_seconds: float
) -> list[StageRunRow]:
    edges: dict[tuple[int, str], dict[str, str]] = {}
    query = select(m.StageRunArtifact).where(
        m.StageRunArtifact.stage_run_id.in_([s.id for s in found])
    )
    for edge in sorted(session.scalars(query), key=lambda edge: _in_words(edge.name)):
        edges.setdefault((edge.stage_run_id, edge.direction), {})[edge.name] = edge.digest
    return [
        StageRunRow(
            id=s.id, run_id=s.run_id, node=s.node, stage=s.stage, key=s.key,
            state=_derived(s.state, s.heartbeat_at or s.created_at, stale_after_seconds),
            attempt=s.attempt, failures=s.failures, spent_seconds=s.spent_seconds, pod=s.pod,
            created_at=s.created_at, started_at=s.started_at,
            finished_at=s.finished_at, heartbeat_at=s.heartbeat_at,
            progress_done=s.progress_done, progress_total=s.progress_total, error=s.error,
            warnings=s.warnings, last_warning=s.last_warning,
            reused_from=s.reused_from,
            metrics={k: math.nan if v is None else v for k, v in s.metrics.items()},
            resources=s.resources,
            inputs=edges.get((s.id, "in"), {}), outputs=edges.get((s.id, "out"), {}),
        )
        for s in found
    ]  # fmt: skip


def _in_words(name: str) -> list[str | int]:
    """What names are put in order by: `step-40` comes before `step-100`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


# --- artifacts and lineage ----------------------------------------------------------------------


def artifact(session: Session, digest: str) -> ArtifactRow:
    """The artifact of that digest, or of the one digest that begins with it (4 digits or more).

    Raises:
        RegistryError: no artifact, or more than one, is meant.
    """
    found = session.get(m.Artifact, digest)
    if found is None:
        usable = len(digest) >= 4 and all(c in "0123456789abcdef" for c in digest)
        query = select(m.Artifact).where(m.Artifact.digest.like(digest + "%")).limit(2)
        matches = session.scalars(query).all() if usable else []
        if not matches:
            raise RegistryError(
                f"no artifact {digest!r}; `caravan show RUN` lists a run's artifacts"
            )
        if len(matches) > 1:
            raise RegistryError(f"{digest!r} may mean several artifacts; write more of the digest")
        found = matches[0]
    return _artifact_row(found)


def artifacts(
    session: Session, *, kind: str | None = None, limit: int | None = 100
) -> list[ArtifactRow]:
    """Artifacts, newest first."""
    query = select(m.Artifact).order_by(m.Artifact.created_at.desc(), m.Artifact.digest)
    if kind is not None:
        query = query.where(m.Artifact.kind == kind)
    return [_artifact_row(a) for a in session.scalars(query.limit(limit))]


def _artifact_row(found: m.Artifact) -> ArtifactRow:
    return ArtifactRow(
        digest=found.digest, kind=found.kind, size_bytes=found.size_bytes, files=found.files,
        uri=found.uri, created_at=found.created_at, metadata=found.details,
    )  # fmt: skip


def references(session: Session) -> dict[str, set[str]]:
    """The runs that refer to each artifact."""
    query = (
        select(m.StageRunArtifact.digest, m.StageRun.run_id)
        .join(m.StageRun, m.StageRun.id == m.StageRunArtifact.stage_run_id)
        .distinct()
    )
    found: dict[str, set[str]] = {}
    for digest, run_id in session.execute(query).tuples():
        found.setdefault(digest, set()).add(run_id)
    files = select(m.Run.recipe_dir, m.Run.id).where(m.Run.recipe_dir.startswith(RECIPE_FILES))
    for recipe_dir, run_id in session.execute(files).tuples():
        found.setdefault(recipe_dir.removeprefix(RECIPE_FILES), set()).add(run_id)
    return found


def unfinished_keys(session: Session) -> dict[str, set[str]]:
    """The keys of stage runs that have not succeeded, with their runs."""
    query = select(m.StageRun.key, m.StageRun.run_id).where(m.StageRun.state != State.SUCCEEDED)
    found: dict[str, set[str]] = {}
    for key, run_id in session.execute(query).tuples():
        found.setdefault(key, set()).add(run_id)
    return found


def lineage(
    session: Session, digest: str, *, direction: Direction, run_id: str | None = None
) -> list[LineageEdge]:
    """Everything an artifact was made from (`in`), or everything made from it (`out`).

    Walks from artifact to stage run to artifact, breadth first. Stage runs that did the same work
    (same key) count once; with `run_id`, only that run's stage runs are walked, reused ones too.
    """
    towards: Direction = "out" if direction == "in" else "in"
    keys: dict[int, str] = {}
    edges_of: dict[int, list[LineageEdge]] = {}
    touching: dict[str, list[int]] = {}
    for key, edge in _edges_around(session, digest, direction, run_id):
        keys[edge.stage_run_id] = key
        edges_of.setdefault(edge.stage_run_id, []).append(edge)
        if edge.direction == towards:
            touching.setdefault(edge.digest, []).append(edge.stage_run_id)
    seen_digests, seen_keys = {digest}, set[str]()
    edges: list[LineageEdge] = []
    frontier, depth = [digest], 0
    while frontier:
        reached = sorted({stage for found in frontier for stage in touching.get(found, ())})
        frontier = []
        for stage in reached:
            if keys[stage] in seen_keys:
                continue
            seen_keys.add(keys[stage])
            for edge in edges_of[stage]:
                edges.append(replace(edge, depth=depth))
                if edge.direction == direction and edge.digest not in seen_digests:
                    seen_digests.add(edge.digest)
                    frontier.append(edge.digest)
        depth += 1
    return edges


def _edges_around(
    session: Session, digest: str, direction: Direction, run_id: str | None
) -> Iterator[tuple[str, LineageEdge]]:
    """All edges of the stage runs that can be walked to, by stage run, each with its key: one
    statement, where the walk itself would ask twice for every stage between."""
    near, far, edge = aliased(m.StageRunArtifact), aliased(m.StageRunArtifact), m.StageRunArtifact
    walked = m.StageRun.reused_from.is_(None) if run_id is None else m.StageRun.run_id == run_id
    reached = select(literal(digest).label("digest")).cte("reached", recursive=True)
    reached = reached.union(
        select(far.digest)
        .join(m.StageRun, m.StageRun.id == far.stage_run_id)
        .join(near, near.stage_run_id == m.StageRun.id)
        .join(reached, reached.c.digest == near.digest)
        .where(walked, near.direction != direction, far.direction == direction)
    )
    stages = select(near.stage_run_id).join(reached, reached.c.digest == near.digest)
    stage = m.StageRun
    query = (
        select(stage.key, stage.id, stage.run_id, stage.node, stage.stage,
               edge.digest, m.Artifact.kind, edge.direction, edge.name)
        .join(stage, stage.id == edge.stage_run_id)
        .join(m.Artifact, m.Artifact.digest == edge.digest)
        .where(stage.id.in_(stages.where(near.direction != direction)), walked)
    )  # fmt: skip
    rows = session.execute(query).tuples().all()
    in_order = sorted(rows, key=lambda row: (row[1], row[7], _in_words(row[8])))
    for key, id, run, node, name, touched, kind, found, called in in_order:
        yield key, LineageEdge(
            digest=touched, kind=kind, stage_run_id=id, run_id=run, node=node, stage=name,
            direction="in" if found == "in" else "out", name=called, depth=0,
        )  # fmt: skip


# --- metrics and scores -------------------------------------------------------------------------


def metrics(
    session: Session,
    stage_run_id: int,
    *,
    names: Collection[str] = (),
    after_step: int | None = None,
    last_steps: int | None = None,
) -> list[MetricRow]:
    """The metric points of a stage run (of the one that did the work, if reused), by step."""
    query = select(m.Metric).where(m.Metric.stage_run_id == _origin(session, stage_run_id))
    if names:
        query = query.where(m.Metric.name.in_(names))
    if after_step is not None:
        query = query.where(m.Metric.step > after_step)
    if last_steps is not None:
        newest = session.scalar(query.with_only_columns(func.max(m.Metric.step)))
        query = query.where(m.Metric.step > (newest or 0) - last_steps)
    rows = session.scalars(query.order_by(m.Metric.step, m.Metric.name))
    return [MetricRow(step=r.step, name=r.name, value=_number(r.value), at=r.at) for r in rows]


def metric_names(session: Session, stage_run_id: int) -> dict[str, int]:
    """The metrics of a stage run (of the one that did the work, if reused) with their last steps.

    From name to name along the index, since a long stage has millions of points.
    """
    origin = _origin(session, stage_run_id)
    ours = m.Metric.stage_run_id == origin
    found = select(func.min(m.Metric.name).label("name")).where(ours).cte("found", recursive=True)
    following = select(func.min(m.Metric.name)).where(ours, m.Metric.name > found.c.name)
    found = found.union_all(select(following.scalar_subquery()).where(found.c.name.is_not(None)))
    last = select(func.max(m.Metric.step)).where(ours, m.Metric.name == found.c.name)
    query = select(found.c.name, last.scalar_subquery()).where(found.c.name.is_not(None))
    return dict(session.execute(query).tuples().all())


def curve(session: Session, stage_run_id: int, name: str, max_points: int) -> list[CurvePoint]:
    """A metric of a stage run (of the one that did the work, if reused) in at most so many points,
    each of as many steps."""
    ours = (m.Metric.stage_run_id == _origin(session, stage_run_id)) & (m.Metric.name == name)
    ends = select(func.min(m.Metric.step), func.max(m.Metric.step)).where(ours)
    first, last = session.execute(ends).tuples().one()
    if first is None:
        return []
    width = -(-(last - first + 1) // max_points)
    part = (m.Metric.step - first) // width
    query = (
        select(
            func.min(m.Metric.step), func.max(m.Metric.step), func.min(m.Metric.at),
            func.avg(m.Metric.value), func.min(m.Metric.value), func.max(m.Metric.value),
        )
        .where(ours).group_by(part).order_by(func.min(m.Metric.step))
    )  # fmt: skip
    return [
        CurvePoint(start, end, at, _number(mean), _number(low), _number(high))
        for start, end, at, mean, low, high in session.execute(query).tuples()
    ]


def _origin(session: Session, stage_run_id: int) -> int:
    """The stage run that has the metrics of this one."""
    stage = session.get(m.StageRun, stage_run_id)
    if stage is None:
        raise RegistryError(f"no stage run {stage_run_id}")
    return stage.reused_from or stage.id


def first_step(
    session: Session, stage_run_id: int, names: Collection[str], since: datetime
) -> int | None:
    """The first step that a stage run has logged one of these metrics of, from `since` on."""
    ours = (m.Metric.stage_run_id == stage_run_id) & m.Metric.name.in_(names)
    return session.scalar(select(func.min(m.Metric.step)).where(ours, m.Metric.at >= since))


def measured_stages(session: Session, run_id: str) -> list[int]:
    """The stage runs of a run that have metric points, their own or those of their origin."""
    origin = func.coalesce(m.StageRun.reused_from, m.StageRun.id)
    query = (
        select(m.StageRun.id)
        .where(m.StageRun.run_id == run_id)
        .where(select(m.Metric.step).where(m.Metric.stage_run_id == origin).exists())
        .order_by(m.StageRun.id)
    )
    return list(session.scalars(query))


def scores(session: Session, run_ids: Collection[str]) -> list[ScoreRow]:
    """The scores of runs, in that order, those of reused stages included."""
    asked, origin = m.StageRun, aliased(m.StageRun)
    stages = (
        select(asked.id, asked.run_id, asked.node, asked.stage, origin.id, origin.metrics)
        .join(origin, origin.id == func.coalesce(asked.reused_from, asked.id))
        .where(asked.run_id.in_(run_ids))
    )
    place = {run_id: number for number, run_id in enumerate(run_ids)}
    asking = sorted(session.execute(stages).tuples(), key=lambda row: (place[row[1]], row[0]))
    s = m.Score
    columns = (s.stage_run_id, s.id, s.task, s.metric, s.suite, s.value, s.low, s.high, s.n)
    query = select(*columns).where(s.stage_run_id.in_([row[4] for row in asking])).order_by(s.id)
    found: dict[int, list[Any]] = {}
    for stage_run_id, *score in session.execute(query):
        found.setdefault(stage_run_id, []).append(score)
    return [
        ScoreRow(
            id=id, stage_run_id=origin_id, run_id=run_id, node=node, stage=stage, task=task,
            metric=metric, suite=suite, value=value, low=low, high=high, n=n,
            truncated=metrics.get(f"{task}/truncated") or 0.0,
            too_long=metrics.get(f"{task}/too_long") or 0.0,
            undecided=metrics.get(f"{task}/undecided_share") or 0.0,
        )
        for _, run_id, node, stage, origin_id, metrics in asking
        for id, task, metric, suite, value, low, high, n in found.get(origin_id, ())
    ]  # fmt: skip


def score_instances(session: Session, score_id: int) -> list[ScoreInstanceRow]:
    query = (
        select(m.ScoreInstance.instance_id, m.ScoreInstance.value)
        .where(m.ScoreInstance.score_id == score_id)
        .order_by(m.ScoreInstance.instance_id)
    )
    return [ScoreInstanceRow(id, _number(value)) for id, value in session.execute(query).tuples()]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# --- annotations --------------------------------------------------------------------------------


def tags(session: Session, run_id: str) -> list[str]:
    query = select(m.Tag.name).where(m.Tag.run_id == run_id).order_by(m.Tag.name)
    return list(session.scalars(query))


def sweeps(session: Session) -> list[SweepRow]:
    """Newest first."""
    query = (
        select(m.Tag.name, func.min(m.Run.name), func.count())
        .join(m.Run, m.Run.id == m.Tag.run_id)
        .where(m.Tag.name.startswith(SWEEP_TAG, autoescape=True))
        .group_by(m.Tag.name)
        .order_by(func.max(m.Run.created_at).desc(), m.Tag.name)
    )
    return [SweepRow(*found) for found in session.execute(query).tuples()]


def notes(session: Session, run_id: str) -> list[NoteRow]:
    query = select(m.Note).where(m.Note.run_id == run_id).order_by(m.Note.id)
    return [_note_row(note) for note in session.scalars(query)]


def note(session: Session, note_id: int) -> NoteRow:
    found = session.get(m.Note, note_id)
    if found is None:
        raise RegistryError(f"no note {note_id}; somebody has deleted it")
    return _note_row(found)


def _note_row(found: m.Note) -> NoteRow:
    return NoteRow(
        id=found.id, run_id=found.run_id, subject=found.subject, author=found.author,
        text=found.text, created_at=found.created_at,
    )  # fmt: skip


def pair_ratings(session: Session, digest: str) -> list[PairRatingRow]:
    query = select(m.PairRating).where(m.PairRating.digest == digest)
    order = (m.PairRating.at, m.PairRating.pair_id, m.PairRating.person)
    return [
        PairRatingRow(pair_id=r.pair_id, person=r.person, choice=cast(Choice, r.choice), at=r.at)
        for r in session.scalars(query.order_by(*order))
    ]


def rated_pairs(session: Session) -> dict[str, int]:
    """How many ratings people have given to each artifact of pairs that has some."""
    count = select(m.PairRating.digest, func.count()).group_by(m.PairRating.digest)
    return dict(session.execute(count).tuples().all())
