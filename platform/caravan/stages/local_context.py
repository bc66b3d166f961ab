"""The context that `execute` gives to a stage: directories, live metrics, and the reporter thread.

What a stage logs goes to a journal in its work directory first and from there to the registry, so
nothing is lost while the registry is away, or when the process is killed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from caravan.errors import RegistryError, RegistryUnavailableError, StageError
from caravan.registry import Registry
from caravan.registry.models import now
from caravan.registry.writes import MetricPoint
from caravan.stages.context import ArtifactKind

if TYPE_CHECKING:
    from caravan.store.checkpoints import S3Checkpoints

logger = logging.getLogger(__name__)

OUTPUT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DELIVER_SECONDS = 0.5
"""Time between two deliveries of metrics and progress to the registry."""
POINTS_PER_DELIVERY = 5000


class Journal:
    """The metric points of one stage, one JSON line each, in the order they were logged."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._writer: TextIO = path.open("a", encoding="utf-8")
        self._reader: TextIO = path.open("r", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float], at: datetime) -> None:
        line = json.dumps([step, {k: float(v) for k, v in metrics.items()}, at.isoformat()])
        with self._lock:
            self._writer.write(line + "\n")
            self._writer.flush()

    def read(self) -> tuple[list[MetricPoint], int]:
        """Points from the mark on, and the mark after them."""
        points: list[MetricPoint] = []
        with self._lock:
            while len(points) < POINTS_PER_DELIVERY and (line := self._reader.readline()):
                step, metrics, at = json.loads(line)
                when = datetime.fromisoformat(at)
                points += [(step, name, value, when) for name, value in metrics.items()]
            return points, self._reader.tell()

    def rewind(self, mark: int) -> None:
        with self._lock:
            self._reader.seek(mark)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process did not finish writing."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


class Warned(logging.Handler):
    """What a stage has warned of, from all that its process logs: how often, and of what last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.so_far: tuple[int, str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        count, _ = self.so_far or (0, "")
        self.so_far = count + 1, record.getMessage()

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


class Reporter:
    """A thread that delivers a stage's metrics, progress and warnings, and tells that it lives."""

    def __init__(
        self,
        registry: Registry,
        stage_run_id: int,
        journal: Journal,
        warned: Warned,
        heartbeat_seconds: float,
    ) -> None:
        self._registry, self._stage_run_id, self._journal = registry, stage_run_id, journal
        self._warned = warned
        self._heartbeat_seconds = heartbeat_seconds
        self._mark = 0
        self._progress: tuple[int, int] | None = None
        self._told: tuple[object, object] = (None, None)
        self._last_beat = time.monotonic()
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caravan-reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def progress(self, done: int, total: int) -> None:
        self._progress = (done, total)

    def stop(self) -> None:
        """Stop the thread; what it has not delivered stays in the journal."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def deliver(self) -> None:
        """Deliver what is due.

        Raises:
            RegistryUnavailableError: the registry is away; call again later.
        """
        while True:
            points, mark = self._journal.read()
            if not points:
                break
            try:
                self._registry.log_points(self._stage_run_id, points)
            except BaseException:
                self._journal.rewind(self._mark)
                raise
            self._mark = mark
        progress, warned = self._progress, self._warned.so_far
        due = time.monotonic() - self._last_beat >= self._heartbeat_seconds
        if due or (progress, warned) != self._told:
            self._registry.heartbeat(self._stage_run_id, progress, warned)
            self._told, self._last_beat = (progress, warned), time.monotonic()

    def _run(self) -> None:
        while not self._stop.wait(DELIVER_SECONDS):
            try:
                self.deliver()
                self._away = False
            except RegistryUnavailableError as error:
                if not self._away:
                    logger.warning("%s; metrics wait in the work directory", error)
                self._away = True
            except RegistryError:
                logger.exception("metrics could not be recorded; they stay in the work directory")
                return


class LocalContext:
    """`StageContext` on a directory of this machine."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        recipe_dir: Path,
        journal: Journal,
        reporter: Reporter,
        remote_checkpoints: S3Checkpoints | None = None,
    ) -> None:
        self.seed, self.recipe_dir = seed, recipe_dir
        self.remote_checkpoints = remote_checkpoints
        """Where training copies its checkpoints to, if other machines must find them."""
        self.workdir = directory / "scratch"
        self._outputs_dir = directory / "outputs"
        self._journal, self._reporter = journal, reporter
        self.kinds: dict[str, ArtifactKind] = {}
        self.workdir.mkdir(parents=True, exist_ok=True)
        if self._outputs_dir.exists():
            shutil.rmtree(self._outputs_dir)  # of an attempt that did not end

    def output(self, name: str, kind: ArtifactKind) -> Path:
        if not OUTPUT_NAME.fullmatch(name):
            raise StageError(f"output name {name!r}: use a-z, 0-9, '.', '_' and '-'")
        if name in self.kinds:
            raise StageError(f"output {name!r} was already opened")
        path = self._outputs_dir / name
        path.mkdir(parents=True)
        self.kinds[name] = kind
        return path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._journal.write(step, metrics, now())

    def progress(self, done: int, total: int) -> None:
        self._reporter.progress(done, total)
