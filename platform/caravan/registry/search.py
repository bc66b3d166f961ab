"""Which runs of many are meant, and in what order: their ids, which is all that is read of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, not_, or_, select
from sqlalchemy.orm import Session

from caravan.registry import models as m
from caravan.registry.states import LIVE, State


@dataclass(frozen=True)
class RecipeField:
    """What is asked of one field of a run's recipe."""

    section: str
    """The field of the recipe that it lies in: `dpo` of `dpo.beta`."""
    holds: Callable[[Any], bool]
    """Given the section, None where the recipe has none."""


@dataclass(frozen=True)
class RunSearch:
    """Runs that meet all of it; what is empty asks for nothing."""

    states: Collection[State] = ()
    names: Collection[str] = ()
    words: Collection[str] = ()
    """Each is part of the id, the owner or a tag, whatever its case ..."""
    fields: Collection[tuple[str, RecipeField]] = ()
    """... and so is the word of each of these, unless its field holds."""
    best: str = ""
    """The model by whose mean over tasks runs are in order, the best first; newest first without,
    and at the end those without a mean."""


def find_runs(session: Session, search: RunSearch, stale_after_seconds: float) -> list[str]:
    said = [_says(word) for word, _ in search.fields]
    sections = [m.Run.recipe[field.section] for _, field in search.fields]
    query = select(m.Run.id, *said, *sections).where(*(_says(word) for word in search.words))
    if search.states:
        query = query.where(or_(*(is_in(state, stale_after_seconds) for state in search.states)))
    if search.names:
        query = query.where(m.Run.name.in_(search.names))
    newest = (m.Run.created_at.desc(), m.Run.id.desc())
    if search.best:
        means = _means(search.best)
        query = query.outerjoin(means, means.c.run_id == m.Run.id)
        query = query.order_by(means.c.mean.desc().nulls_last(), *newest)
    else:
        query = query.order_by(*newest)
    asked, count = [field for _, field in search.fields], len(search.fields)
    return [
        row[0]
        for row in session.execute(query)
        if all(
            says or field.holds(section)
            for says, section, field in zip(
                row[1 : count + 1], row[count + 1 :], asked, strict=True
            )
        )
    ]


def _says(word: str) -> ColumnElement[bool]:
    tags = select(m.Tag.run_id).where(_holds(m.Tag.name, word))
    return or_(_holds(m.Run.id, word), _holds(m.Run.owner, word), m.Run.id.in_(tags))


def _holds(column: Any, word: str) -> ColumnElement[bool]:
    # The database puts both into lower case: Python and PostgreSQL differ in some letters.
    escaped = re.sub(r"([\\%_])", r"\\\1", word)
    return func.lower(column).contains(func.lower(escaped), escape="\\")


def is_in(state: State, stale_after_seconds: float) -> ColumnElement[bool]:
    """As `queries` derives a state: a live run is interrupted when neither it nor a stage of it has
    beaten for so long, and no backend knows it."""
    stale = m.now() - timedelta(seconds=stale_after_seconds)
    beats = select(m.StageRun.id).where(
        m.StageRun.run_id == m.Run.id, m.StageRun.heartbeat_at >= stale
    )
    interrupted = and_(
        m.Run.state.in_(LIVE),
        m.Run.backend_run_id == "",
        func.coalesce(m.Run.heartbeat_at, m.Run.created_at) < stale,
        not_(beats.exists()),
    )
    if state is State.INTERRUPTED:
        return interrupted
    same = m.Run.state == state
    return and_(same, not_(interrupted)) if state in LIVE else same


def _means(model: str) -> Any:
    """The mean of each run's model of that name, over the tasks of all parts of its evaluation."""
    node, total, count = m.StageRun.node, m.StageRun.share_total, m.StageRun.share_count
    known = func.count(total) == func.count()
    return (
        select(m.StageRun.run_id, case((known, func.sum(total) / func.sum(count))).label("mean"))
        .where(node.startswith(f"evaluate-{model}", autoescape=True))
        .where(node.regexp_match(rf"^evaluate-{re.escape(model)}(-[0-9]+)?$"), count > 0)
        .group_by(m.StageRun.run_id)
        .subquery()
    )
