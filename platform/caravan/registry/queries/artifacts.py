"""Artifacts, and what was made from what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sqlalchemy import literal, select
from sqlalchemy.orm import Session, aliased

from caravan.errors import RegistryError
from caravan.registry import models as m
from caravan.registry.queries.stage_runs import in_words
from caravan.registry.rows import (
    RECIPE_FILES,
    ArtifactRow,
    Direction,
    LineageEdge,
)
from caravan.registry.states import State


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
    in_order = sorted(rows, key=lambda row: (row[1], row[7], in_words(row[8])))
    for key, id, run, node, name, touched, kind, found, called in in_order:
        yield key, LineageEdge(
            digest=touched, kind=kind, stage_run_id=id, run_id=run, node=node, stage=name,
            direction="in" if found == "in" else "out", name=called, depth=0,
        )  # fmt: skip
