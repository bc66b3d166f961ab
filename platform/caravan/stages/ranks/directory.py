"""The directory through which a launcher and its ranks talk. No torch, no network.

workdir/ranks/
    spec.json           what to train
    events.jsonl        metrics, progress and warnings, written by the leading rank
    told                how many bytes of it the launcher has handed over
    stop                made by the launcher: finish the step, save, end
    stopped-0           made by a rank that ended so
    error-0.json        why a rank failed
    outputs/model/      what the leading rank made, with
    result.json         written last
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from caravan.stages.context import StageContext


@dataclass(frozen=True)
class Spec:
    train: str
    """`module:function` that every rank calls with config, inputs and context."""
    config_type: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    recipe_dir: str
    workdir: str
    checkpoint_key: str | None
    """Name of the checkpoints in a remote store, if there is one."""

    def call(self, context: StageContext) -> Any:
        config: type[BaseModel] = _find(self.config_type)
        inputs = {name: Path(path) for name, path in self.inputs.items()}
        return _find(self.train)(config.model_validate(self.config), inputs, context)


@dataclass(frozen=True)
class RankError:
    kind: str
    """`user` for an error that is shown without its traceback, `lost` where the connection to
    another rank broke, else `crash`."""
    message: str
    at: float
    rank: int


class RankDirectory:
    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "ranks"
        self.spec_file = self.path / "spec.json"
        self.stop_file = self.path / "stop"
        self.lock_file = self.path / "lock"
        self.outputs = self.path / "outputs"
        self._events = self.path / "events.jsonl"
        self._result = self.path / "result.json"
        self._told = self.path / "told"

    # --- the launcher's side ----------------------------------------------------------------

    def prepare(self, spec: Spec) -> None:
        """Begin a new attempt; what an earlier one reported and nobody was told is told now."""
        self.path.mkdir(parents=True, exist_ok=True)
        for old in (*self.path.glob("stop*"), *self.path.glob("error-*.json"), self._result):
            old.unlink(missing_ok=True)
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.spec_file.write_text(json.dumps(asdict(spec)))

    def tell(self, context: StageContext) -> None:
        """Hand over what the ranks have reported since the last call, of this attempt or of an
        earlier one: `context.log` takes what it is told for new."""
        told = int(self._told.read_text()) if self._told.exists() else 0
        if not self._events.exists() or self._events.stat().st_size == told:
            return
        with self._events.open("rb") as file:
            file.seek(told)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                told += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut short by the end of its process
                if "metrics" in event:
                    context.log(event["step"], event["metrics"])
                elif "warning" in event:
                    logging.getLogger(event["logger"]).warning(event["warning"])
                else:
                    context.progress(event["done"], event["total"])
        _write_whole(self._told, str(told))

    def result(self) -> dict[str, Any] | None:
        return json.loads(self._result.read_text()) if self._result.exists() else None

    def has_stopped(self) -> bool:
        return any(self.path.glob("stopped-*"))

    def errors(self) -> list[RankError]:
        """The telling ones first: other ranks fail because the first has."""
        found = []
        for path in self.path.glob("error-*.json"):
            try:
                found.append(RankError(**json.loads(path.read_text())))
            except ValueError:  # cut short
                continue
        order = ("user", "crash", "lost")
        return sorted(found, key=lambda error: (order.index(error.kind), error.at))

    # --- the ranks' side --------------------------------------------------------------------

    def report(self, event: Mapping[str, Any]) -> None:
        with self._events.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                torn = file.read(1) != b"\n"
                file.write(b"\n" if torn else b"")
            file.write(json.dumps(event).encode() + b"\n")

    def finish(self, result: Mapping[str, Any]) -> None:
        _write_whole(self._result, json.dumps(result))

    def say_stopped(self, rank: int) -> None:
        (self.path / f"stopped-{rank}").touch()

    def say_failed(self, rank: int, kind: str, message: str) -> None:
        path = self.path / f"error-{rank}.json"
        if not path.exists():
            path.write_text(json.dumps(asdict(RankError(kind, message, time.time(), rank))))


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_suffix(".writing")
    aside.write_text(text)
    aside.replace(path)


def name_of(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
