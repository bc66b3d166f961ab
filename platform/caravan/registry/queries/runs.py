"""Runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.rows import (
    Backend,
    RunRow,
)
from caravan.registry.search import is_in
from caravan.registry.states import LIVE, State


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
                derived(r.state, heartbeat or r.created_at, stale_after_seconds),
            )
        )  # fmt: skip
    return rows


def derived(state: State, heartbeat: object, stale_after_seconds: float) -> State:
    """The state as told: what is live but gave no sign for so long was interrupted."""
    if state not in LIVE:
        return state
    stale = m.now() - timedelta(seconds=stale_after_seconds) > heartbeat  # type: ignore[operator]
    return State.INTERRUPTED if stale else state
