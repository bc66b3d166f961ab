"""Runs, stage runs, artifacts and their lineage, metrics, scores, tags, notes and ratings."""

from caravan.registry.database import upgrade
from caravan.registry.opening import open_registry
from caravan.registry.registry import Registry
from caravan.registry.rows import (
    RECIPE_FILES,
    SERVED_TAG,
    SWEEP_TAG,
    ArtifactRow,
    Backend,
    Choice,
    CurvePoint,
    LineageEdge,
    MetricRow,
    NoteRow,
    PairRatingRow,
    RunRow,
    ScoreInstanceRow,
    ScoreRow,
    StageRunRow,
)
from caravan.registry.states import RunState, StageState, State

__all__ = [
    "RECIPE_FILES", "SERVED_TAG", "SWEEP_TAG", "ArtifactRow", "Backend", "Choice", "CurvePoint",
    "LineageEdge", "MetricRow", "NoteRow", "PairRatingRow", "Registry", "RunRow", "RunState",
    "ScoreInstanceRow", "ScoreRow", "StageRunRow", "StageState", "State", "open_registry",
    "upgrade",
]  # fmt: skip
