"""What torchrun starts on every rank: python -m caravan.stages.ranks.worker SPEC"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from caravan.errors import CaravanError
from caravan.interruption import (
    CONTINUE_EXIT_CODE,
    StageStopped,
    StopSignals,
    stop_when_exists,
)
from caravan.operations.logs import configure_logging
from caravan.orphans import die_with_parent
from caravan.settings import load_settings
from caravan.stages.context import ArtifactKind
from caravan.stages.ranks.directory import RankDirectory, Spec
from caravan.store.checkpoints import S3Checkpoints
from caravan.training.parallel.ranks import Ranks, join


class RankContext:
    """A stage's context on one rank; the leading one's reports reach the launcher."""

    def __init__(self, spec: Spec, ranks: Ranks, directory: RankDirectory) -> None:
        self.seed = spec.seed
        self.workdir, self.recipe_dir = Path(spec.workdir), Path(spec.recipe_dir)
        self.kinds: dict[str, ArtifactKind] = {}
        self._leads, self._directory = ranks.leads, directory
        key = spec.checkpoint_key if self._leads else None
        self.remote_checkpoints = S3Checkpoints(load_settings(), key) if key else None

    def output(self, name: str, kind: ArtifactKind) -> Path:
        assert self._leads, "only the leading rank writes outputs"
        self.kinds[name] = kind
        path = self._directory.outputs / name
        shutil.rmtree(path, ignore_errors=True)  # of ranks that were lost while they wrote
        path.mkdir(parents=True)
        return path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._leads:
            self._directory.report({"step": step, "metrics": dict(metrics)})

    def progress(self, done: int, total: int) -> None:
        if self._leads:
            self._directory.report({"done": done, "total": total})


def run(spec: Spec, directory: RankDirectory) -> None:
    ranks = join()
    configure_logging(
        load_settings().log_format,
        level=logging.INFO if ranks.leads else logging.WARNING,
        rank=str(ranks.rank),
    )
    if ranks.leads:
        _leave_warnings_to_the_launcher(directory)
    stop_when_exists(directory.stop_file)
    context = RankContext(spec, ranks, directory)
    try:
        result = spec.call(context)
    except StageStopped:
        directory.say_stopped(ranks.rank)
        raise
    except CaravanError as error:
        directory.say_failed(ranks.rank, "user", str(error))
        raise
    except BaseException as error:
        kind = "lost" if _lost_another(error) else "crash"
        directory.say_failed(ranks.rank, kind, traceback.format_exc())
        raise
    if ranks.leads:
        directory.finish({"metrics": dict(result.metrics), "kinds": context.kinds})
    ranks.wait()  # a rank that ends early looks to torchrun's peers like one that failed


class _ReportedWarnings(logging.Handler):
    def __init__(self, directory: RankDirectory) -> None:
        super().__init__()
        self._directory = directory
        self.addFilter(lambda record: record.levelno == logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self._directory.report({"logger": record.name, "warning": record.getMessage()})


def _leave_warnings_to_the_launcher(directory: RankDirectory) -> None:
    """It logs them, and so they are counted as the stage's."""
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(lambda record: record.levelno != logging.WARNING)
    root.addHandler(_ReportedWarnings(directory))


def _lost_another(error: BaseException) -> bool:
    """Whether the connection to another rank broke: that one knows why, if it could say so."""
    from torch.distributed import DistNetworkError

    # gloo raises plain RuntimeErrors, which name the source that they come from.
    broken = isinstance(error, RuntimeError) and "gloo/transport/" in str(error)
    return broken or isinstance(error, DistNetworkError)


def main() -> None:
    die_with_parent()
    path = Path(sys.argv[1])
    try:
        with StopSignals():
            run(Spec(**json.loads(path.read_text())), RankDirectory(path.parent.parent))
    except StageStopped:
        sys.exit(CONTINUE_EXIT_CODE)
    # All is written. To unload torch and DeepSpeed, whose threads still run, aborts now and then.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
