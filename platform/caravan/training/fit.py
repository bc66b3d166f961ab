"""A training job carried through: resumed where it stopped, logged, checkpointed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

from transformers import PreTrainedModel

from caravan.recipe import TrainingConfig
from caravan.training.batching import StepSampler
from caravan.training.checkpoint import Checkpoints, TrainingState
from caravan.training.loop import B, Objective, StepMetrics, train
from caravan.training.optim import Updater


class Row(Protocol):
    """A row of the training data, of one sequence or of a pair."""

    @property
    def id(self) -> str: ...

    @property
    def length(self) -> int: ...


class FitContext(Protocol):
    """The part of a stage's context that training needs."""

    @property
    def workdir(self) -> Path: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def progress(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Job(Generic[B]):
    """What one training run is made of."""

    model: PreTrainedModel
    updater: Updater
    objective: Objective[B]
    sampler: StepSampler
    passes: Callable[[Sequence[int]], list[B]]
    """The passes over rows with the given numbers."""
    lanes: int = 1
    """Passes computed at once."""

    def steps(self, *, bf16: bool, first_step: int = 0) -> Iterator[StepMetrics]:
        """Train, yielding once per optimiser step."""
        return train(
            self.model,
            self.updater,
            lambda step: self.passes(self.sampler.step(step)),
            self.objective,
            bf16=bf16,
            lanes=self.lanes,
            first_step=first_step,
        )


def fit(
    job: Job[B], context: FitContext, *, identity: str, bf16: bool, save_steps: int
) -> dict[str, float]:
    """Train to the end; gives the metrics of the last step.

    A stage that was stopped finds its last checkpoint in `context.workdir` and goes on from there,
    through the same steps with the same losses as one that was not.

    Args:
        identity: digest of what is trained on what; a checkpoint of another one is refused.
        save_steps: optimiser steps between checkpoints.
    """
    total = job.sampler.steps
    state = TrainingState({"policy": job.model}, {"policy": job.updater.optimizer})
    checkpoints = Checkpoints(context.workdir, fingerprint=identity)
    resumed = checkpoints.restore(state)
    done = resumed.step if resumed else 0
    last: dict[str, float] = resumed.extra if resumed else {}
    context.progress(done, total)
    started = time.perf_counter()
    for metrics in job.steps(bf16=bf16, first_step=done):
        seconds, started = time.perf_counter() - started, time.perf_counter()
        trained = last.get("num_tokens", 0) + metrics.tokens
        last = {**metrics.values, "num_tokens": trained}
        context.log(metrics.step, {**last, "perf/tokens_per_second": metrics.tokens / seconds})
        context.progress(metrics.step, total)
        if metrics.step % save_steps == 0 or metrics.step == total:
            checkpoints.save(metrics.step, state, last)
            started = time.perf_counter()
    return last


def identity(
    stage: str, config: TrainingConfig, seed: int, model: Path, rows: Sequence[Row]
) -> str:
    """What a checkpoint belongs to: a digest of stage, settings, starting weights and rows.

    Of each weight file the size and the first MiB are read, of each row its id and length: enough
    to tell mistakes apart, since `workdir` itself belongs to one stage key.
    """
    weights = []
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            start = hashlib.sha256(file.read(1 << 20)).hexdigest()
        weights.append((path.name, path.stat().st_size, start))
    settings = config.model_dump_json(exclude={"resources", "save_steps"})
    described = [(row.id, row.length) for row in rows]
    return hashlib.sha256(repr((stage, settings, seed, weights, described)).encode()).hexdigest()
