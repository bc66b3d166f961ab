"""What the registry answers with: plain frozen rows, free of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from caravan.registry.states import State

Direction = Literal["in", "out"]
Backend = Literal["local", "kubeflow"]
"""Who executes a run."""
Choice = Literal["chosen", "rejected", "tie", "skip"]
"""Which reply of a pair a person prefers; `skip`: they would not say."""
SWEEP_TAG = "sweep:"
"""What the tag begins with that the runs of a sweep have in common."""
TAG_CHARACTERS = 128
"""Of a tag, at most."""
SERVED_TAG = "serving:"
"""What a tag of a run begins with whose model a server reads; the server's name follows."""

RECIPE_FILES = "artifact:"
"""Before the digest in a run's `recipe_dir` that is an artifact."""


@dataclass(frozen=True)
class RunRow:
    id: str
    name: str
    state: State
    seed: int
    owner: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    recipe_dir: str
    """Directory that relative paths of the recipe are meant from."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    error: str | None
    backend: Backend = "local"
    backend_run_id: str = ""
    """What the backend calls the run: the id of Kubeflow Pipelines."""
    caravan_version: str = ""
    """Of the process that created the run; empty of runs from before it was recorded."""
    tags: tuple[str, ...] = ()
    paused_seconds: float = 0.0
    """Between its ends and its going on."""

    @property
    def seconds(self) -> float | None:
        """That it was worked on, without pauses."""
        found = _seconds(self.started_at, self.finished_at or self.heartbeat_at)
        return None if found is None else max(0.0, found - self.paused_seconds)


@dataclass(frozen=True)
class StageRunRow:
    id: int
    run_id: str
    node: str
    """Unique in the run: `sft`, `evaluate-dpo`."""
    stage: str
    """The stage module: `sft`, `evaluate`."""
    key: str
    state: State
    attempt: int
    """0 before the first start; each start adds one, also of a resumed run."""
    failures: int
    """Attempts that failed since the run was launched or resumed; a lost pod is no failure."""
    spent_seconds: float
    """Of the attempts before the last one."""
    pod: str
    """Where the last attempt ran on a cluster; empty elsewhere."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    progress_done: int
    progress_total: int
    error: str | None
    warnings: int
    """How many the last attempt has logged."""
    last_warning: str
    reused_from: int | None
    """The stage run that did the work, where this one only took its artifacts."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final numbers of the stage."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """What the last attempt was given to run on, as a recipe says it; empty where that was not
    recorded."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest of each input artifact, by name."""
    outputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin_id(self) -> int:
        """The stage run that holds the metric series and the scores."""
        return self.reused_from or self.id

    @property
    def warned(self) -> str:
        """`3 warnings, the last: 997 of 1196 rows have no reply ...`; empty without one."""
        if self.warnings < 2:
            return f"warning: {self.last_warning}" if self.warnings else ""
        return f"{self.warnings:,} warnings, the last: {self.last_warning}"

    @property
    def seconds(self) -> float | None:
        """Of the last attempt."""
        return _seconds(self.started_at, self.finished_at or self.heartbeat_at)

    @property
    def total_seconds(self) -> float:
        """Of every attempt in this run; nothing for a stage that was reused."""
        return self.spent_seconds + (0.0 if self.reused_from else self.seconds or 0.0)


@dataclass(frozen=True)
class ArtifactRow:
    digest: str
    kind: str
    size_bytes: int
    files: int
    uri: str
    """Empty of one that was removed from the store while runs refer to it."""
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LineageEdge:
    """One artifact read or written by one stage run."""

    digest: str
    kind: str
    stage_run_id: int
    run_id: str
    node: str
    stage: str
    direction: Direction
    """`in`: the stage read it; `out`: the stage wrote it."""
    name: str
    depth: int
    """Stages between the artifact that was asked about and this edge, from 0."""


@dataclass(frozen=True)
class MetricRow:
    step: int
    name: str
    value: float
    at: datetime


@dataclass(frozen=True)
class CurvePoint:
    """Neighbouring points of a metric as one; of a short series each point by itself."""

    first_step: int
    last_step: int
    at: datetime
    """Of the first step."""
    mean: float
    """Over those that are no NaN, as `low` and `high` are."""
    low: float
    high: float


@dataclass(frozen=True)
class ScoreRow:
    id: int
    stage_run_id: int
    """The stage run that was evaluated in; with a reused stage, the one that did the work."""
    run_id: str
    """The run that was asked about."""
    node: str
    stage: str
    task: str
    metric: str
    suite: str
    value: float
    low: float
    high: float
    n: int
    truncated: float = 0.0
    """Share of the task's replies that reached the length limit."""
    too_long: float = 0.0
    """Share of its prompts that left no room for a reply."""
    undecided: float = 0.0
    """Share of its replies that the verifier or the judge failed on."""


@dataclass(frozen=True)
class ScoreInstanceRow:
    instance_id: str
    value: float


@dataclass(frozen=True)
class NoteRow:
    id: int
    run_id: str
    subject: str
    """What in the run it is about: a node, a pair, an instance; empty for the run itself."""
    author: str
    text: str
    created_at: datetime


@dataclass(frozen=True)
class PairRatingRow:
    """What one person prefers of the two replies of a pair."""

    pair_id: str
    person: str
    choice: Choice
    at: datetime


@dataclass(frozen=True)
class SweepRow:
    """The runs that have a tag of a sweep in common."""

    tag: str
    name: str
    """Of their recipe."""
    runs: int


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, as accuracies and rates do; ratings do not."""
    return "rating" not in metric


def scale_of(metric: str) -> tuple[int, int]:
    """What a score is multiplied by where it is told, and its decimals: shares are in per cent,
    ratings as given."""
    return (100, 1) if is_share(metric) else (1, 2)


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else max(0.0, (end - start).total_seconds())
