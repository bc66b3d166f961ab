"""Metrics and scores."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.rows import (
    CurvePoint,
    MetricRow,
    ScoreInstanceRow,
    ScoreRow,
)


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
