"""Stage runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.queries.runs import derived
from caravan.registry.rows import (
    StageRunRow,
)
from caravan.registry.states import State


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
    for edge in sorted(session.scalars(query), key=lambda edge: in_words(edge.name)):
        edges.setdefault((edge.stage_run_id, edge.direction), {})[edge.name] = edge.digest
    return [
        StageRunRow(
            id=s.id, run_id=s.run_id, node=s.node, stage=s.stage, key=s.key,
            state=derived(s.state, s.heartbeat_at or s.created_at, stale_after_seconds),
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


def in_words(name: str) -> list[str | int]:
    """What names are put in order by: `step-40` comes before `step-100`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
