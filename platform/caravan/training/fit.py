"""A training job carried through: resumed where it stopped, logged, checkpointed."""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from transformers import PreTrainedModel

from caravan.garbage import collect_as_usual
from caravan.interruption import StageStopped, hold_stops
from caravan.recipe import TrainingConfig
from caravan.training.batching import StepSampler
from caravan.training.candidates import Candidates
from caravan.training.checkpoint import Checkpoints
from caravan.training.dropout import dropout_rates
from caravan.training.health import SpikeWatch, speed
from caravan.training.loop import B, Objective, Pass, StepMetrics, measure, train
from caravan.training.optim import NonFiniteError, Updater
from caravan.training.parallel.ranks import current
from caravan.training.seeds import derived_seed

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 10
"""Steps that a run may leave out where its recipe says so."""


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
    rows: Sequence[Row]
    passes: Callable[[Sequence[int]], list[B]]
    """The passes over rows with the given numbers."""
    add_estimate: Callable[[list[B], Sequence[int]], list[B]] | None = None
    """Gives the passes of a step what is estimated over its rows, from those of this rank, which
    may be none. Every rank calls it."""
    lanes: int = 1
    """Passes computed at once."""

    def steps(
        self,
        *,
        bf16: bool,
        first_step: int = 0,
        skip_non_finite: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[StepMetrics]:
        """Train, yielding once per optimiser step."""
        draws = any(dropout_rates(self.model))  # in an order that threads would not keep
        return train(
            self.model,
            self.updater,
            partial(self._own_passes, [row.length for row in self.rows]),
            self.objective,
            bf16=bf16,
            lanes=1 if current().count > 1 or draws else self.lanes,
            first_step=first_step,
            skip_non_finite=skip_non_finite,
            stop=stop,
        )

    def validate(self, *, bf16: bool) -> dict[str, float]:
        """The loss and what else is reported of a step, as `validation/...`, on the rows that are
        held out, if there are any."""
        if not self.sampler.held_out:
            return {}
        passes = self._passes([row.length for row in self.rows], self.sampler.held_out)
        measured = measure(self.model, self.updater, passes, self.objective, bf16=bf16)
        return {f"validation/{name}": value for name, value in measured.items()}

    def _own_passes(self, lengths: Sequence[int], step: int) -> list[Pass[B]]:
        """This rank's passes of a step; one that does not count where the rank has no rows.

        What the step draws depends on nothing before it, so a run that goes on from a checkpoint
        draws the same; no two ranks drop the same.
        """
        ranks = current()
        torch.manual_seed(derived_seed(self.sampler.seed, f"rank {ranks.rank}", step))
        return self._passes(lengths, self.sampler.step(step))

    def _passes(self, lengths: Sequence[int], rows: Sequence[int]) -> list[Pass[B]]:
        own = current().share(rows, lengths)
        batches = self.passes(own or rows[:1])
        if self.add_estimate is not None:
            batches = self.add_estimate(batches, own)
        return [Pass(batch, counts=bool(own)) for batch in batches]


def fit(
    job: Job[B],
    context: FitContext,
    *,
    identity: str,
    config: TrainingConfig,
    candidates: Candidates | None = None,
) -> dict[str, float]:
    """Train to the end; gives the metrics of the last step.

    A stage that was stopped finds its last checkpoint in `context.workdir` and goes on from there,
    through the same steps with the same losses as one that was not. Asked to stop, it finishes the
    step it is at and saves a checkpoint.

    Args:
        identity: digest of what is trained on what; a checkpoint of another one is refused.
        candidates: get the policies along the way.

    Raises:
        CaravanError: a candidate that the last checkpoint counts on is missing.
        NonFiniteError: too many steps had to be left out, or the first one where none may be.
        StageStopped: the process was asked to stop.
    """
    collect_as_usual()
    total, ranks = job.sampler.steps, current()
    state = job.updater.state()
    remote = getattr(context, "remote_checkpoints", None)
    checkpoints = Checkpoints(
        context.workdir,
        fingerprint=identity,
        remote=remote,
        before_copy=candidates.copy if candidates else lambda: None,
    )
    with hold_stops() as stop, checkpoints:
        resumed = checkpoints.restore(state)
        progress = Progress(**resumed.extra) if resumed else Progress()
        done = saved = resumed.step if resumed else 0
        if candidates and ranks.leads:
            candidates.restore(done)
        if resumed:
            logger.info("goes on at step %d of %d", done, total)
        context.progress(done, total)
        started = time.perf_counter()
        for metrics in job.steps(
            bf16=config.bf16,
            first_step=done,
            skip_non_finite=config.on_non_finite == "skip",
            stop=lambda: stop.asked,
        ):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            done = metrics.step
            progress.add(metrics)
            rate = speed(job.model, metrics.computed, metrics.supervised, seconds, ranks.count)
            due = candidates is not None and candidates.due(done)
            if done % config.validation_steps == 0 or done == total or due:
                progress.validation = job.validate(bf16=config.bf16)
                rate |= progress.validation
                started = time.perf_counter()
            if candidates and due:
                candidates.save(done, job.updater.weights())
                if progress.validation:
                    progress.losses[str(done)] = progress.validation["validation/loss"]
                started = time.perf_counter()
            context.log(done, {**progress.last, **rate})
            context.progress(done, total)
            if done % config.save_steps == 0 or done == total:
                checkpoints.save(done, state, progress.state())
                saved = done
        if done > saved:
            checkpoints.save(done, state, progress.state())
        if done < total:  # asked to stop, here or on another rank
            checkpoints.wait()
            ranks.wait()  # none ends before the leading one has written
            raise StageStopped(stop.signal_number or signal.SIGTERM)
        job.updater.finish()
    taken = candidates.take_by(progress.losses) if candidates else {}
    return {**progress.last, **progress.validation, **taken}


@dataclass
class Progress:
    """What the numbers of the next step depend on, besides the model."""

    last: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last ones."""
    losses: dict[str, float] = field(default_factory=dict)
    """Of held-out rows, by the step of each candidate."""
    skipped: int = 0
    spikes: SpikeWatch = field(default_factory=SpikeWatch)

    def __post_init__(self) -> None:
        if isinstance(self.spikes, dict):
            self.spikes = SpikeWatch(**self.spikes)

    def add(self, metrics: StepMetrics) -> None:
        """
        Raises:
            NonFiniteError: too many steps were left out.
        """
        self.skipped += metrics.skipped
        if self.skipped > MAX_SKIPPED_STEPS:
            raise NonFiniteError(
                f"step {metrics.step - 1}: {self.skipped} steps had a loss or a gradient that is "
                "not finite, too many to go on; the log names their rows. Lower learning_rate, or "
                "look at the rows"
            )
        trained = self.last.get("num_tokens", 0) + metrics.tokens
        if self.spikes.watch(metrics.values["loss"]):
            logger.warning(
                "step %d: the loss jumped to %g", metrics.step - 1, metrics.values["loss"]
            )
        self.last = {
            **metrics.values,
            "num_tokens": trained,
            "skipped_steps": self.skipped,
            "loss_spikes": self.spikes.spikes,
        }

    def state(self) -> dict[str, Any]:
        return {
            "last": self.last,
            "validation": self.validation,
            "losses": self.losses,
            "skipped": self.skipped,
            "spikes": self.spikes.state(),
        }


def identity(
    stage: str, config: TrainingConfig, seed: int, model: Path, rows: Sequence[Row]
) -> str:
    """What a checkpoint belongs to: a digest of stage, settings, starting weights and rows.

    Of each weight file the size and the first MiB are read, of each row its id and length: enough
    to tell mistakes apart, since `workdir` itself belongs to one stage key. How a step is cut into
    passes may change on the way, with the device.
    """
    weights = []
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            start = hashlib.sha256(file.read(1 << 20)).hexdigest()
        weights.append((path.name, path.stat().st_size, start))
    settings = config.model_dump_json(exclude={"resources", "save_steps", "tokens_per_pass"})
    described = [(row.id, row.length) for row in rows]
    return hashlib.sha256(repr((stage, settings, seed, weights, described)).encode()).hexdigest()
