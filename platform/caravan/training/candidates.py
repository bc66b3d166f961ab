"""The policies along the way of a training stage from which its result is selected later.

    workdir/candidates/step-100/    a model directory, whole once it has this name

They belong to the run's checkpoints: one that is resumed from has all candidates up to its step
beside it, and in a store that other machines reach they are copied before it.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from caravan.errors import CaravanError, StoreError
from caravan.stages.candidates import TAKEN
from caravan.stages.context import StageContext
from caravan.store.durable import sync
from caravan.training.parallel.ranks import current

if TYPE_CHECKING:
    from caravan.store.checkpoints import S3Checkpoints

logger = logging.getLogger(__name__)


Write = Callable[[Path, Mapping[str, Tensor] | None], None]
"""Writes the model directory of the policy that is trained, with these for its own weights where
those may be spread over ranks."""


class Candidates:
    """Of one training run; none where `every` is None."""

    def __init__(
        self,
        context: StageContext,
        every: int | None,
        total: int,
        write: Write,
        *,
        by_loss: bool = False,
    ) -> None:
        """
        Args:
            total: steps of the run, after the last of which there is one, too.
            by_loss: the loss of held-out rows decides already here.
        """
        self._context, self._every, self._total, self._write = context, every, total, write
        self._by_loss = by_loss
        self._taken: int | None = None
        if every is not None and every >= total and current().leads:
            logger.warning(
                "select.every %d keeps no policy before the last of %d steps, so there is nothing "
                "to select from", every, total,
            )  # fmt: skip
        self._directory = context.workdir / "candidates"
        self._remote: S3Checkpoints | None = getattr(context, "remote_checkpoints", None)
        self._to_copy: list[Path] = []

    def due(self, step: int) -> bool:
        """Whether the policy after so many steps is one."""
        return self._every is not None and (step % self._every == 0 or step == self._total)

    def save(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the policy with these weights; only the leading rank does."""
        if not current().leads:
            return
        final = self._path(step)
        aside = final.with_name(f"writing-{final.name}")
        for old in (aside, final):  # of an attempt that did not reach the checkpoint after it
            shutil.rmtree(old, ignore_errors=True)
        self._write(aside, weights)
        for file in aside.iterdir():
            sync(file)
        aside.rename(final)
        sync(self._directory)
        self._to_copy.append(final)

    def copy(self) -> None:
        """Put what was saved where other machines reach it.

        Raises:
            StoreError: the store does not take it; it is tried again with the next checkpoint.
        """
        while self._remote is not None and self._to_copy:
            self._remote.upload(self._to_copy[0], self._directory.name)
            self._to_copy.pop(0)

    def restore(self, done: int) -> None:
        """Have all candidates of a run that goes on after `done` steps.

        Raises:
            CaravanError: one of them is nowhere.
        """
        for step in self._steps(done):
            path = self._path(step)
            if self._remote is not None:
                self._match(path, self._remote)
            if not path.is_dir():
                raise CaravanError(
                    f"{path} is missing, which the run's checkpoints count on; delete "
                    f"{self._context.workdir / 'checkpoints'} to start anew"
                )

    def _match(self, path: Path, remote: S3Checkpoints) -> None:
        """Fetch a candidate that only the store has; note one that only this machine may have."""
        here = path.is_dir()
        try:
            if not here:
                remote.fetch_one(path, self._directory.name)
            elif remote.has(path, self._directory.name):
                return
        except StoreError as error:
            logger.warning("%s was not looked for in the store: %s", path.name, error)
        if here:
            self._to_copy.append(path)

    def take_by(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Where the loss decides, take the policy that has the lowest, of equal ones the earliest;
        gives what there is to say of it.

        Args:
            losses: of held-out rows, by the step after which they were measured.
        """
        if not self._by_loss:
            return {}
        steps = [(math.isnan(loss), loss, int(step)) for step, loss in losses.items()]
        *_, self._taken = min(steps)
        return {TAKEN: self._taken}

    def publish(self) -> None:
        """Make each an output of the stage, under the name of its step; where there are none, the
        policy that was trained, as `model`, and where the loss has decided, that which it took.
        Only the leading rank does."""
        if not current().leads:
            return
        if self._every is None:
            self._write(self._context.output("model", "model"), None)
        elif self._taken is not None:
            self._give_out(self._taken, "model")
        else:
            for step in self._steps(self._total):
                self._give_out(step, self._path(step).name)

    def _give_out(self, step: int, name: str) -> None:
        target = self._context.output(name, "model")
        shutil.copytree(self._path(step), target, copy_function=os.link, dirs_exist_ok=True)

    def _steps(self, done: int) -> list[int]:
        return [step for step in range(1, done + 1) if self.due(step)]

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step}"
