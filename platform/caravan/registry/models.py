"""The tables. Nothing outside this package sees these classes."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from caravan.registry.rows import TAG_CHARACTERS
from caravan.registry.states import State

SCHEMA_VERSION = "0010"
"""Newest revision in `migrations/versions`; a test holds the two together."""

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


class UTCDateTime(TypeDecorator[datetime]):
    """An aware time. SQLite has no time zones and would give back naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "naive time"
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class NanFloat(TypeDecorator[float]):
    """A float that may be NaN, stored as NULL: SQLite has no NaN."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else float(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        datetime: UTCDateTime,
        float: Float(53),
        State: Enum(
            State, name="state", native_enum=False, length=16, create_constraint=True,
            values_callable=lambda members: [member.value for member in members],
        ),
    }  # fmt: skip


class Run(Base):
    __tablename__ = "run"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[State] = mapped_column(default=State.PENDING)
    seed: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str] = mapped_column(String(255))
    recipe: Mapped[dict[str, Any]]
    recipe_digest: Mapped[str] = mapped_column(String(64), index=True)
    recipe_dir: Mapped[str] = mapped_column(Text, default="")
    backend: Mapped[str] = mapped_column(String(16), default="local", server_default="local")
    backend_run_id: Mapped[str] = mapped_column(String(255), default="", server_default="")
    caravan_version: Mapped[str] = mapped_column(String(64), default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    paused_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    error: Mapped[str | None] = mapped_column(Text)


class StageRun(Base):
    __tablename__ = "stage_run"
    __table_args__ = (UniqueConstraint("run_id", "node"), Index(None, "key", "state"))

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    node: Mapped[str] = mapped_column(String(128))
    stage: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(64))
    state: Mapped[State] = mapped_column(default=State.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    spent_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    pod: Mapped[str] = mapped_column(String(255), default="", server_default="")
    resources: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    progress_done: Mapped[int] = mapped_column(default=0)
    progress_total: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    warnings: Mapped[int] = mapped_column(default=0, server_default="0")
    last_warning: Mapped[str] = mapped_column(Text, default="", server_default="")
    reused_from: Mapped[int | None] = mapped_column(ForeignKey("stage_run.id"), index=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    share_total: Mapped[float | None] = mapped_column(NanFloat)
    """Over the tasks of its scores, or its origin's, of the first metric of each that is a share:
    10,000 runs are put in order without their scores. NaN where one of them is."""
    share_count: Mapped[int] = mapped_column(default=0, server_default="0")


class Artifact(Base):
    __tablename__ = "artifact"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    uri: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """`metadata` to the outside; the declarative base takes that name."""


class StageRunArtifact(Base):
    """Lineage: a stage run read (`in`) or wrote (`out`) an artifact under a name."""

    __tablename__ = "stage_run_artifact"

    stage_run_id: Mapped[int] = mapped_column(
        ForeignKey("stage_run.id", ondelete="CASCADE"), primary_key=True
    )
    direction: Mapped[str] = mapped_column(String(3), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifact.digest"), index=True)


class Metric(Base):
    __tablename__ = "metric"

    stage_run_id: Mapped[int] = mapped_column(
        ForeignKey("stage_run.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None] = mapped_column(NanFloat)
    at: Mapped[datetime]


class Score(Base):
    __tablename__ = "score"
    __table_args__ = (UniqueConstraint("stage_run_id", "task", "metric"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    stage_run_id: Mapped[int] = mapped_column(ForeignKey("stage_run.id", ondelete="CASCADE"))
    task: Mapped[str] = mapped_column(String(128))
    metric: Mapped[str] = mapped_column(String(64))
    suite: Mapped[str] = mapped_column(String(16))
    value: Mapped[float | None] = mapped_column(NanFloat)
    low: Mapped[float | None] = mapped_column(NanFloat)
    high: Mapped[float | None] = mapped_column(NanFloat)
    n: Mapped[int]


class ScoreInstance(Base):
    __tablename__ = "score_instance"

    score_id: Mapped[int] = mapped_column(
        ForeignKey("score.id", ondelete="CASCADE"), primary_key=True
    )
    instance_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[float | None] = mapped_column(NanFloat)


class Tag(Base):
    __tablename__ = "tag"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(TAG_CHARACTERS), primary_key=True, index=True)


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), index=True)
    subject: Mapped[str] = mapped_column(String(255), default="")
    author: Mapped[str] = mapped_column(String(255))
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)


class PairRating(Base):
    """What a person prefers of the two replies of a pair."""

    __tablename__ = "pair_rating"

    digest: Mapped[str] = mapped_column(ForeignKey("artifact.digest"), primary_key=True)
    pair_id: Mapped[str] = mapped_column(Text, primary_key=True)
    person: Mapped[str] = mapped_column(String(255), primary_key=True)
    choice: Mapped[str] = mapped_column(String(8))
    at: Mapped[datetime]
