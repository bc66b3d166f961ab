"""Checkpoints: the complete state of a training run, written aside and renamed when complete.

    workdir/checkpoints/step-00000200/
        state.json                  step, fingerprint, extra, Python's and NumPy's RNG, file digests
        tensors.safetensors         weights, optimiser moments, torch's RNG

Nothing is pickled. A checkpoint that was cut short or altered does not count: the one before it is
taken, or training starts from the beginning, which gives the same result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caravan.errors import CaravanError

logger = logging.getLogger(__name__)

STATE = "state.json"
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on, besides the data and the config."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    """Generators other than torch's default one, which is always kept."""


@dataclass(frozen=True)
class Resumed:
    step: int
    """Optimiser steps already taken."""
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run."""

    def __init__(self, workdir: Path, *, fingerprint: str, keep: int = 2) -> None:
        """`fingerprint` says what is being trained; `keep` is how many checkpoints stay."""
        self.directory = workdir / "checkpoints"
        self._fingerprint = fingerprint
        self._keep = keep

    def save(self, step: int, state: TrainingState, extra: Mapping[str, Any] | None = None) -> Path:
        """Save after `step` optimiser steps; `extra` is anything JSON can hold."""
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"step-{step:08d}"
        aside = self.directory / f"writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(_tensors(state), aside / TENSORS)
        document = {
            "step": step,
            "fingerprint": self._fingerprint,
            "extra": dict(extra or {}),
            "python_rng": random.getstate(),
            "numpy_rng": _numpy_rng(),
            "sha256": _sha256(aside / TENSORS),
        }
        (aside / STATE).write_text(json.dumps(document))
        for name in (TENSORS, STATE):
            _sync(aside / name)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(self.directory)
        for old in self._complete()[self._keep :]:
            shutil.rmtree(old)
        return final

    def restore(self, state: TrainingState) -> Resumed | None:
        """Put the newest sound checkpoint into `state`, in place; None where there is none.

        Raises:
            CaravanError: the checkpoint is of another training run.
        """
        for directory in self._complete():
            document = _read(directory)
            if document is None:
                logger.warning("%s is damaged and is left out", directory)
                continue
            if document["fingerprint"] != self._fingerprint:
                raise CaravanError(
                    f"{directory} is a checkpoint of another training run (other model, data or "
                    f"settings); delete {self.directory} to start anew"
                )
            _put(load_file(directory / TENSORS), state)
            version, keys, gauss = document["python_rng"]
            random.setstate((version, tuple(keys), gauss))
            _set_numpy_rng(document["numpy_rng"])
            return Resumed(document["step"], document["extra"])
        return None

    def _complete(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("step-*"), reverse=True)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    for name, generator in state.generators.items():
        tensors[f"generator/{name}"] = generator.get_state()
    for name, module in state.modules.items():
        for key, value in _own_tensors(module).items():
            tensors[f"module/{name}/{key}"] = value.detach()
    for name, optimizer in state.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer/{name}/{index}/{key}"] = value
    return {key: value.contiguous() for key, value in tensors.items()}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and kept buffers, each once: tied weights share one entry."""
    kept = module.state_dict(keep_vars=True)
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for key, value in kept.items():
        if id(value) not in seen:
            seen.add(id(value))
            own[key] = value
    return own


def _put(tensors: dict[str, Tensor], state: TrainingState) -> None:
    torch.set_rng_state(tensors["rng"])
    if "rng_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng_cuda"])
    for name, generator in state.generators.items():
        generator.set_state(tensors[f"generator/{name}"])
    with torch.no_grad():
        for name, module in state.modules.items():
            for key, value in _own_tensors(module).items():
                value.copy_(tensors[f"module/{name}/{key}"])
    for name, optimizer in state.optimizers.items():
        prefix = f"optimizer/{name}/"
        moments: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            if path.startswith(prefix):
                index, _, key = path.removeprefix(prefix).partition("/")
                moments.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _numpy_rng() -> dict[str, Any]:
    state = np.random.get_state(legacy=False)
    return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}


def _set_numpy_rng(state: dict[str, Any]) -> None:
    keys = np.array(state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state, "state": {**state["state"], "key": keys}})


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
