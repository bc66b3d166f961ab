"""Runs, stage runs, artifacts and their lineage, metrics, scores, tags, notes and ratings."""

from caravan.registry.database import upgrade
from caravan.registry.opening import open_registry
from caravan.registry.registry import Registry
from caravan.registry.rows import (
    RECIPE_FILES,
    SERVED_TAG,
    SWEEP_TAG,
    TAG_CHARACTERS,
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
    SweepRow,
    is_share,
    scale_of,
)
from caravan.registry.search import RecipeField, RunSearch
from caravan.registry.states import LIVE, STOPPED, RunState, StageState, State

__all__ = [
    "LIVE", "RECIPE_FILES", "SERVED_TAG", "STOPPED", "SWEEP_TAG", "TAG_CHARACTERS", "ArtifactRow",
    "Backend", "Choice", "CurvePoint", "LineageEdge", "MetricRow", "NoteRow", "PairRatingRow",
    "RecipeField", "Registry", "RunRow", "RunSearch", "RunState", "ScoreInstanceRow", "ScoreRow",
    "StageRunRow", "StageState", "State", "SweepRow", "is_share", "open_registry", "scale_of",
    "upgrade",
]  # fmt: skip
