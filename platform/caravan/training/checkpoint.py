"""Checkpoints: the complete state of a training run, written aside and renamed when complete.

    workdir/checkpoints/step-00000200/
        state.json                  step, fingerprint, extra, file digests
        tensors.safetensors         weights, optimiser moments

No random number generator is part of it: each step draws from seeds of its own.

Nothing is pickled. A checkpoint that was cut short or altered does not count: the one before it is
taken, which gives the same result. Where there is no other, it is an error.

The format knows nothing of ranks: what one process wrote, several can continue from, under any ZeRO
stage, and the other way round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from caravan.errors import CaravanError, StoreError
from caravan.store.durable import sync
from caravan.training.parallel.ranks import current

logger = logging.getLogger(__name__)

STATE = "state.json"
TENSORS = "tensors.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Copies(dict[str, Tensor]):
    """Tensors on the host that nothing else refers to, so that a checkpoint need not copy them."""


class State(Protocol):
    """What a checkpoint holds."""

    def tensors(self) -> Mapping[str, Tensor]:
        """By name. Every rank calls this; what others than the leader get does not matter."""

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave, in place."""


class RemoteCheckpoints(Protocol):
    """Copies of checkpoints where other machines reach them."""

    def upload(self, directory: Path) -> None:
        """Keep a copy of a complete checkpoint, under the name of its directory."""

    def fetch(self, parent: Path) -> None:
        """Put the newest copy into `parent`, unless it has one as new."""

    def keep(self, names: list[str]) -> None:
        """Remove all copies but these."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on, besides the data and the config.

    Frozen parameters are not part of it: they are as the stage's input has them.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]

    def tensors(self) -> Mapping[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            for key, value in own_tensors(module).items():
                tensors[tensor_key(name, key)] = value.detach()
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                for key, value in moments.items():
                    tensors[optimizer_key(name, index, key)] = value
        return tensors

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, module in self.modules.items():
                for key, value in own_tensors(module).items():
                    value.copy_(tensors[tensor_key(name, key)])
        for name, optimizer in self.optimizers.items():
            prefix = f"optimizer/{name}/"
            moments: dict[int, dict[str, Tensor]] = {}
            for path in tensors:
                if path.startswith(prefix):
                    index, _, key = path.removeprefix(prefix).partition("/")
                    moments.setdefault(int(index), {})[key] = tensors[path]
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})


@dataclass(frozen=True)
class States:
    """Several as one; no two use the same names."""

    parts: Sequence[State]

    def tensors(self) -> Mapping[str, Tensor]:
        found = [part.tensors() for part in self.parts]
        merged = Copies(item for tensors in found for item in tensors.items())
        return merged if all(isinstance(tensors, Copies) for tensors in found) else dict(merged)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            part.put(tensors)


@dataclass(frozen=True)
class Resumed:
    step: int
    """Optimiser steps already taken."""
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run.

    Saving copies the state and returns; a thread writes the copy. As a context, it waits for the
    last one at the end.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        fingerprint: str,
        keep: int = 2,
        remote: RemoteCheckpoints | None = None,
        before_copy: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            fingerprint: says what is being trained.
            keep: how many checkpoints stay.
            before_copy: copies what a checkpoint counts on to `remote`, before the checkpoint.
        """
        self.directory = workdir / "checkpoints"
        self._fingerprint = fingerprint
        self._keep = keep
        self._remote, self._before_copy = remote, before_copy
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
            logger.exception("the last checkpoint could not be written")

    def save(self, step: int, state: State, extra: Mapping[str, Any] | None = None) -> None:
        """Save after `step` optimiser steps; `extra` is anything JSON can hold.

        Waits for the checkpoint before, if that is still being written.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        tensors = state.tensors()
        if not current().leads:
            return
        copied = (
            tensors
            if isinstance(tensors, Copies)
            else {key: value.to("cpu", copy=True) for key, value in tensors.items()}
        )
        document = {
            "step": step,
            "fingerprint": self._fingerprint,
            "extra": dict(extra or {}),
        }
        # What is in `extra` may change before the thread writes it.
        text = json.dumps(document)
        self._writer = threading.Thread(
            target=self._write, args=(step, copied, text), name="caravan-checkpoint"
        )
        self._writer.start()

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def restore(self, state: State) -> Resumed | None:
        """Put the newest sound checkpoint into `state`, in place; None where there is none.

        The leading rank reads it and hands it to the others, which need not reach its disk.

        Raises:
            CaravanError: the checkpoint is of another training run.
        """
        self.wait()
        ranks = current()
        found = self._newest() if ranks.leads else None
        document = ranks.of_leader(found[1] if found else None)
        if document is None:
            return None
        with _opened(found[0] / TENSORS if found else None) as file:
            state.put(ranks.tensors_of_leader(file))
        return Resumed(document["step"], document["extra"])

    # --- inside -----------------------------------------------------------------------------

    def _write(self, step: int, tensors: dict[str, Tensor], document: str) -> None:
        """In the writer's thread."""
        try:
            final = self._path(step)
            aside = self.directory / f"writing-{final.name}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file({key: value.contiguous() for key, value in tensors.items()}, aside / TENSORS)
            described = {**json.loads(document), "sha256": _sha256(aside / TENSORS)}
            (aside / STATE).write_text(json.dumps(described))
            for name in (TENSORS, STATE):
                sync(aside / name)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            sync(self.directory)
            for old in self._complete()[self._keep :]:
                shutil.rmtree(old)
            self._copy(final)
        except BaseException as error:
            self._error = error

    def _copy(self, directory: Path) -> None:
        if self._remote is None:
            return
        try:
            self._before_copy()
            self._remote.upload(directory)
            self._remote.keep([path.name for path in self._complete()])
        except StoreError as error:  # the next one will do; training need not stop for it
            logger.warning("%s was not copied to the store: %s", directory.name, error)

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is sound, and its document."""
        if self._remote is not None:
            try:
                self._remote.fetch(self.directory)
            except StoreError as error:
                logger.warning("checkpoints of other machines were not looked for: %s", error)
        checkpoints = self._complete()
        for directory in checkpoints:
            document = _read(directory)
            if document is None:
                logger.warning("%s is damaged and is left out", directory)
                continue
            if document["fingerprint"] != self._fingerprint:
                raise CaravanError(
                    f"{directory} is a checkpoint of another training run (other model, data or "
                    f"settings); delete {self.directory} to start anew"
                )
            return directory, document
        if checkpoints:
            raise CaravanError(
                f"{checkpoints[0]} is damaged (cut short or altered), and there is no other "
                f"checkpoint to continue from; delete {self.directory} to start anew"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _complete(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("step-*"), reverse=True)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return torch.as_tensor(self._file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _opened(path: Path | None) -> Iterator[_Tensors | None]:
    if path is None:
        yield None
        return
    with safe_open(path, framework="pt") as file:
        yield _Tensors(file)


def tensor_key(module: str, path: str) -> str:
    return f"module/{module}/{path}"


def optimizer_key(optimizer: str, number: int, name: str) -> str:
    """Of the state of the parameter with this number among all that the optimiser has."""
    return f"optimizer/{optimizer}/{number}/{name}"


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and kept buffers, each once: tied weights share one entry."""
    kept = module.state_dict(keep_vars=True)
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for key, value in kept.items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if id(value) not in seen and not frozen:
            seen.add(id(value))
            own[key] = value
    return own


def _read(directory: Path) -> dict[str, Any] | None:
    """The checkpoint's state, or None where it is damaged."""
    try:
        document: dict[str, Any] = json.loads((directory / STATE).read_text())
        whole = _sha256(directory / TENSORS) == document["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return document if whole else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
