"""What can be written to the registry. Each function takes a session; the caller commits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, overload

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.rows import (
    RECIPE_FILES,
    TAG_CHARACTERS,
    Backend,
    Choice,
    Direction,
    is_share,
)
from caravan.registry.states import State
from caravan.store.manifest import Artifact
from caravan.version import caravan_version

MetricPoint = tuple[int, str, float, datetime]
"""Step, name, value, and when it was measured."""


def new_run_id(name: str, at: datetime) -> str:
    """Sorts by time within a recipe, can be typed, and is unique: `pocket-20261122-153000-ab12`."""
    return f"{name}-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def create_run(
    session: Session,
    recipe: Mapping[str, Any],
    *,
    name: str,
    seed: int,
    recipe_digest: str,
    owner: str,
    recipe_dir: str,
    tags: Iterable[str],
    run_id: str | None,
    backend: Backend,
) -> str:
    at = m.now()
    if run_id is None:
        run_id = new_run_id(name, at)
        while session.get(m.Run, run_id):  # four digits are drawn twice, among many of a second
            run_id = new_run_id(name, at)
    run = m.Run(
        id=run_id, name=name, seed=seed, owner=owner, recipe=dict(recipe),
        recipe_digest=recipe_digest, recipe_dir=recipe_dir, created_at=at, heartbeat_at=at,
        state=State.PENDING, backend=backend, caravan_version=caravan_version(),
    )  # fmt: skip
    session.add(run)
    session.flush()
    set_tags(session, run.id, tags)
    return run.id


def update_run_state(session: Session, run_id: str, state: State, error: str | None) -> None:
    run = session.get(m.Run, run_id)
    if run is None:
        raise RegistryError(f"no run {run_id!r}; `caravan runs` lists them")
    at = m.now()
    # A local run whose process was lost has no end, and its last beat stands for it.
    ended = run.finished_at or (run.heartbeat_at if run.backend == "local" else None)
    if run.started_at and ended and not state.finished:
        run.paused_seconds += max(0.0, (at - ended).total_seconds())
    run.state, run.error, run.heartbeat_at = state, _storable(error), at
    if state == State.RUNNING:
        run.started_at, run.finished_at = run.started_at or at, None
    run.finished_at = at if state.finished else None


def delete_run(session: Session, run_id: str) -> None:
    """Forget a run and all that hangs on it; who reused its stages keeps their work."""
    mine = m.StageRun.run_id == run_id
    ids = session.scalars(select(m.StageRun.id).where(mine).with_for_update()).all()
    session.execute(update(m.StageRun).where(mine).values(reused_from=None))
    for stage_run_id in ids:
        _bequeath(session, stage_run_id)
    session.execute(delete(m.Run).where(m.Run.id == run_id))


def set_backend_run(session: Session, run_id: str, backend_run_id: str) -> None:
    session.execute(update(m.Run).where(m.Run.id == run_id).values(backend_run_id=backend_run_id))


def take_backend_run(session: Session, run_id: str, backend_run_id: str) -> bool:
    """Whether the run was the backend's of that id; it is nobody's now."""
    mine = (m.Run.id == run_id) & (m.Run.backend_run_id == backend_run_id)
    values = {"backend_run_id": "", "heartbeat_at": m.now()}
    found = session.execute(update(m.Run).where(mine).values(values).returning(m.Run.id))
    return found.first() is not None


def forgive_failures(session: Session, run_id: str) -> None:
    session.execute(update(m.StageRun).where(m.StageRun.run_id == run_id).values(failures=0))


def heartbeat_run(session: Session, run_id: str) -> None:
    session.execute(update(m.Run).where(m.Run.id == run_id).values(heartbeat_at=m.now()))


def open_stage_run(session: Session, run_id: str, node: str, stage: str, key: str) -> int:
    """The stage run of `node`, new or opened again after an earlier attempt."""
    if session.get(m.Run, run_id) is None:
        raise RegistryError(f"no run {run_id!r}; `caravan runs` lists them")
    at = m.now()
    # One statement, so that two launches of one node at once do not collide.
    values = {"run_id": run_id, "node": node, "stage": stage, "key": key, "created_at": at,
              "state": State.PENDING, "attempt": 0, "progress_done": 0, "progress_total": 0,
              "warnings": 0, "last_warning": "", "metrics": {}}  # fmt: skip
    session.execute(_insert(session, m.StageRun).values(values).on_conflict_do_nothing(
        index_elements=["run_id", "node"]
    ))  # fmt: skip
    query = select(m.StageRun).where(m.StageRun.run_id == run_id, m.StageRun.node == node)
    found = session.scalars(query.with_for_update()).one()
    if found.key == key and found.state == State.SUCCEEDED:
        return found.id
    if found.key != key:
        # The stage's code or its inputs have changed since: what is recorded is of other work.
        _bequeath(session, found.id)
        found.failures = 0
    if found.started_at and not found.reused_from:
        ended = found.finished_at or found.heartbeat_at or found.started_at
        found.spent_seconds += max(0.0, (ended - found.started_at).total_seconds())
    found.started_at = None
    found.stage, found.key, found.state, found.heartbeat_at = stage, key, State.PENDING, at
    found.finished_at, found.error, found.reused_from = None, None, None
    found.pod = ""  # of an earlier attempt
    found.progress_done, found.progress_total, found.metrics = 0, 0, {}
    found.share_total, found.share_count = None, 0
    found.warnings, found.last_warning = 0, ""
    return found.id


def _bequeath(session: Session, stage_run_id: int) -> None:
    """Forget the work of a stage run, or hand it to one that reused it."""
    heirs = session.scalars(
        select(m.StageRun.id).where(m.StageRun.reused_from == stage_run_id).order_by(m.StageRun.id)
    ).all()
    for table in (m.Metric, m.Score):
        belongs = table.stage_run_id == stage_run_id
        if heirs:  # whose own are of attempts before they reused
            session.execute(delete(table).where(table.stage_run_id == heirs[0]))
            session.execute(update(table).where(belongs).values(stage_run_id=heirs[0]))
        else:
            session.execute(delete(table).where(belongs))
    if heirs:
        _set(session, heirs[0], reused_from=None)
        later = update(m.StageRun).where(m.StageRun.id.in_(heirs[1:]))
        session.execute(later.values(reused_from=heirs[0]))
    _unlink(session, stage_run_id)


def _unlink(session: Session, stage_run_id: int) -> None:
    session.execute(
        delete(m.StageRunArtifact).where(m.StageRunArtifact.stage_run_id == stage_run_id)
    )


def start_stage_run(
    session: Session, stage_run_id: int, pod: str, resources: Mapping[str, Any]
) -> None:
    _unlink(session, stage_run_id)
    _set(
        session, stage_run_id, state=State.RUNNING, attempt=m.StageRun.attempt + 1,
        started_at=m.now(), heartbeat_at=m.now(), finished_at=None, error=None, reused_from=None,
        pod=pod, resources=dict(resources),
    )  # fmt: skip


def heartbeat(
    session: Session,
    stage_run_id: int,
    progress: tuple[int, int] | None,
    warned: tuple[int, str] | None,
) -> None:
    values: dict[str, Any] = {"heartbeat_at": m.now()}
    if progress is not None:
        values |= {"progress_done": progress[0], "progress_total": progress[1]}
    if warned is not None:
        values |= {"warnings": warned[0], "last_warning": _storable(warned[1])}
    _set(session, stage_run_id, **values)


def hold_finished(session: Session, stage_run_id: int, key: str) -> bool:
    """Whether a stage run still is the one that did the work of `key`, and is until we commit."""
    found = session.get(m.StageRun, stage_run_id, with_for_update=True)
    return found is not None and found.key == key and found.state == State.SUCCEEDED


def finish_stage_run(
    session: Session,
    stage_run_id: int,
    state: State,
    *,
    error: str | None,
    metrics: Mapping[str, float],
    reused_from: int | None,
    at: datetime | None = None,
) -> None:
    assert state.finished, state
    found = session.get(m.StageRun, stage_run_id, with_for_update=True)
    if found is None:
        raise RegistryError(f"no stage run {stage_run_id}")
    if found.state == State.SUCCEEDED and state != State.SUCCEEDED:
        return  # stopped after its work was published: that stays done
    at = at or m.now()
    _set(
        session, stage_run_id, state=state, error=_storable(error), finished_at=at, heartbeat_at=at,
        reused_from=reused_from, failures=found.failures + (state == State.FAILED),
        # JSON has no numbers that are not finite, and PostgreSQL refuses them.
        metrics={k: float(v) if math.isfinite(v) else None for k, v in metrics.items()},
    )  # fmt: skip


def _set(session: Session, stage_run_id: int, **values: Any) -> None:
    session.execute(update(m.StageRun).where(m.StageRun.id == stage_run_id).values(**values))


def add_artifact(
    session: Session, artifact: Artifact, uri: str, metadata: Mapping[str, Any]
) -> None:
    """Record an artifact; one that is known already stays as it is, but for where it lies."""
    values = {"digest": artifact.digest, "kind": artifact.kind, "files": artifact.files,
              "size_bytes": artifact.size_bytes, "uri": uri, "created_at": m.now(),
              "details": dict(metadata)}  # fmt: skip
    session.execute(_insert(session, m.Artifact).values(values).on_conflict_do_update(
        index_elements=["digest"], set_={"uri": uri}
    ))  # fmt: skip


def forget_uri(session: Session, digest: str) -> None:
    session.execute(update(m.Artifact).where(m.Artifact.digest == digest).values(uri=""))


def take_unreferenced(session: Session, digest: str, *, rated: bool) -> bool:
    """Whether no run refers to the artifact, nor a person's rating, which go too with `rated`; who
    is about to waits for the transaction's end."""
    values = {"digest": digest, "kind": "", "files": 0, "size_bytes": 0, "uri": "",
              "created_at": m.now(), "details": {}}  # fmt: skip
    session.execute(_insert(session, m.Artifact).values(values).on_conflict_do_update(
        index_elements=["digest"], set_={"digest": digest}
    ))  # fmt: skip
    row = m.Artifact.digest == digest
    linked = select(m.StageRunArtifact.name).where(m.StageRunArtifact.digest == digest)
    files = select(m.Run.id).where(m.Run.recipe_dir == RECIPE_FILES + digest)
    free = session.scalar(linked.limit(1)) is None and session.scalar(files.limit(1)) is None
    ratings = m.PairRating.digest == digest
    if free and rated:
        session.execute(delete(m.PairRating).where(ratings))
    free &= session.scalar(select(m.PairRating.person).where(ratings).limit(1)) is None
    session.execute(delete(m.Artifact).where(row if free else row & (m.Artifact.kind == "")))
    return free


def link(
    session: Session, stage_run_id: int, direction: Direction, artifacts: Mapping[str, str]
) -> None:
    for name, digest in artifacts.items():
        values = {"stage_run_id": stage_run_id, "direction": direction, "name": name,
                  "digest": digest}  # fmt: skip
        session.execute(_insert(session, m.StageRunArtifact).values(values).on_conflict_do_update(
            index_elements=["stage_run_id", "direction", "name"], set_={"digest": digest}
        ))  # fmt: skip


def log_metrics(session: Session, stage_run_id: int, points: Sequence[MetricPoint]) -> None:
    """Record points; one that is delivered again replaces itself."""
    last = {(step, name): (value, at) for step, name, value, at in points}
    rows = [
        {"stage_run_id": stage_run_id, "step": step, "name": name, "value": value, "at": at}
        for (step, name), (value, at) in last.items()
    ]
    if not rows:
        return
    insert = _insert(session, m.Metric)
    replace = insert.on_conflict_do_update(
        index_elements=["stage_run_id", "name", "step"],
        set_={"value": insert.excluded.value, "at": insert.excluded.at},
    )
    session.connection().execute(replace, rows)


def add_scores(session: Session, stage_run_id: int, scores: Sequence[Any]) -> None:
    """Replace the stage run's scores (`caravan.stages.context.Score`) and their instances."""
    _delete_scores(session, stage_run_id)
    first: dict[str, float] = {}
    for score in scores:
        if is_share(score.metric):
            first.setdefault(score.task, score.value)
        row = m.Score(
            stage_run_id=stage_run_id, task=score.task, metric=score.metric, suite=score.suite,
            value=score.value, low=score.low, high=score.high, n=score.n,
        )  # fmt: skip
        session.add(row)
        session.flush()
        if score.instances:
            session.bulk_insert_mappings(
                m.ScoreInstance.__mapper__,
                [
                    {"score_id": row.id, "instance_id": instance, "value": value}
                    for instance, value in score.instances.items()
                ],
            )
    _set(session, stage_run_id, share_total=sum(first.values()), share_count=len(first))


def take_shares(session: Session, stage_run_id: int, origin_id: int) -> None:
    """What a reused stage run's scores add up to is what its origin's do."""
    origin = session.get_one(m.StageRun, origin_id)
    _set(session, stage_run_id, share_total=origin.share_total, share_count=origin.share_count)


def _delete_scores(session: Session, stage_run_id: int) -> None:
    session.execute(delete(m.Score).where(m.Score.stage_run_id == stage_run_id))


def set_tags(session: Session, run_id: str, tags: Iterable[str]) -> None:
    """Make `tags` the tags of the run."""
    wanted = sorted(set(tags))
    for tag in wanted:
        if not tag.strip() or len(tag) > TAG_CHARACTERS:
            raise RegistryError(f"tag {tag!r}: a tag has 1 to {TAG_CHARACTERS} characters")
    session.execute(delete(m.Tag).where(m.Tag.run_id == run_id))
    session.add_all([m.Tag(run_id=run_id, name=tag) for tag in wanted])


def add_note(session: Session, run_id: str, text: str, author: str, subject: str) -> int:
    if not text.strip():
        raise RegistryError("a note needs some text")
    note = m.Note(run_id=run_id, text=_storable(text), author=author, subject=subject)
    session.add(note)
    session.flush()
    return note.id


def edit_note(session: Session, note_id: int, text: str) -> None:
    if not text.strip():
        raise RegistryError("a note needs some text; delete the note instead")
    _existing_note(session, note_id).text = text


def delete_note(session: Session, note_id: int) -> None:
    session.delete(_existing_note(session, note_id))


def rate_pair(session: Session, digest: str, pair_id: str, person: str, choice: Choice) -> None:
    if session.get(m.Artifact, digest) is None:
        raise RegistryError(f"no pairs {digest[:12]}; somebody has deleted them")
    insert = _insert(session, m.PairRating).values(
        digest=digest, pair_id=pair_id, person=person, choice=choice, at=m.now()
    )
    session.execute(insert.on_conflict_do_update(
        index_elements=["digest", "pair_id", "person"],
        set_={"choice": insert.excluded.choice, "at": insert.excluded["at"]},
    ))  # fmt: skip


def _existing_note(session: Session, note_id: int) -> m.Note:
    note = session.get(m.Note, note_id)
    if note is None:
        raise RegistryError(f"no note {note_id}; somebody has deleted it")
    return note


@overload
def _storable(text: str) -> str: ...
@overload
def _storable(text: None) -> None: ...
def _storable(text: str | None) -> str | None:
    """`text` with what no database takes written out: NUL and lone surrogates."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _insert(session: Session, table: type[m.Base]) -> Any:
    """An INSERT of the database in use: both have ON CONFLICT, each in its own module."""
    connection: Connection = session.connection()
    postgres = connection.dialect.name == "postgresql"
    return postgresql.insert(table) if postgres else sqlite.insert(table)
