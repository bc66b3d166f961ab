"""What people say of runs: tags, sweeps, notes, ratings of pairs."""

from __future__ import annotations

from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.rows import (
    SWEEP_TAG,
    Choice,
    NoteRow,
    PairRatingRow,
    SweepRow,
)


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
