"""What a stage is given besides its config and its inputs.

A stage is a module of this package with

    NAME: str                # "sft"
    VERSION: int             # raised when the same config and inputs would give other outputs
    def run(config, inputs: Mapping[str, Path], context: StageContext) -> StageResult

and, where the config names files that are not artifacts,

    def external_files(config, recipe_dir: Path) -> Iterable[Path]

whose content then takes part in the stage's key.

`run` knows nothing of Kubernetes, KFP, Postgres or S3. It reads artifacts from `inputs` (read-only
directories), writes each output into `context.output(name, kind)`, and returns what is to be
registered. What it writes depends only on config, inputs and `context.seed`: no clock, no host
name, no path, no order of a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

ArtifactKind = Literal["dataset", "model", "report", "completions", "pairs", "logprobs"]


@dataclass(frozen=True)
class Score:
    """One score of a model on a task, with the instances behind it."""

    task: str
    metric: str
    value: float
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    n: int
    suite: Literal["dev", "unseen"] = "dev"
    instances: Mapping[str, float] = field(default_factory=dict)
    """Score of each instance, by its id."""


@dataclass(frozen=True)
class StageResult:
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final numbers of the stage, for tables: row counts, last loss, accuracy."""
    scores: tuple[Score, ...] = ()


class StageContext(Protocol):
    @property
    def seed(self) -> int:
        """Seed of this stage, derived from the recipe's."""

    @property
    def workdir(self) -> Path:
        """Scratch directory that survives a restart of this stage: checkpoints go here."""

    @property
    def recipe_dir(self) -> Path:
        """Directory that relative paths of the recipe are meant from."""

    def output(self, name: str, kind: ArtifactKind) -> Path:
        """An empty directory to write the output `name` into, published when `run` returns."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of one step, live."""

    def progress(self, done: int, total: int) -> None:
        """Tell how far the stage is, for progress bars."""
