"""The plumbing around every stage: key, reuse, inputs, heartbeat, publish, lineage, failure.

    execute("sft", "sft", recipe.sft, {"model": base, "dataset": mix}, run_id, settings)

A stage that was killed anywhere continues by being executed again: what it published is reused,
and its work directory `home/work/KEY` with its checkpoints is still there.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from caravan.data.template import TEMPLATE_HASH
from caravan.data.template_stamp import check_template, recorded_hash, stamp
from caravan.errors import (
    RegistryError,
    RegistryUnavailableError,
    StageError,
    StoreError,
    some,
)
from caravan.interruption import CONTINUE_EXIT_CODE, StageStopped, StopSignals
from caravan.registry import Registry, RunRow, StageRunRow, State
from caravan.settings import Settings, load_settings
from caravan.stages.candidates import Selection, missed
from caravan.stages.context import StageResult
from caravan.stages.failure import described, disk_full
from caravan.stages.key import Stage, load_stage, stage_key, stage_seed
from caravan.stages.local_context import Journal, LocalContext, Reporter, Warned
from caravan.stages.made import Made, plain_floats
from caravan.stages.patience import open_patiently, patiently
from caravan.stages.process import discard, exclusive
from caravan.stages.usage import CPU_SECONDS, cpu_seconds, peak_memory
from caravan.store import Artifact, Store, open_store
from caravan.store.manifest import list_files

if TYPE_CHECKING:
    from caravan.store.checkpoints import S3Checkpoints

logger = logging.getLogger(__name__)

CANCEL_PATIENCE_SECONDS = 5.0
ANY_TEMPLATE = ("completions", "report")
"""Artifacts that hold what a model replied; it may have been asked in a template of its own."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

T = TypeVar("T")


def execute(
    node: str,
    stage: str,
    config: BaseModel,
    inputs: Mapping[str, str],
    run_id: str,
    settings: Settings | None = None,
    *,
    recipe_dir: Path | None = None,
    selection: Selection | None = None,
) -> dict[str, str]:
    """Run one stage of a run, or reuse what an earlier run of it made.

    Args:
        node: name of the stage run, unique in the run (`evaluate-dpo`).
        stage: module of `caravan.stages`, or the full name of a module elsewhere.
        config: all that the stage sees of the recipe.
        inputs: digest of each input artifact, by name.
        recipe_dir: directory that relative paths are meant from; the run knows it otherwise.
        selection: what selects from the outputs; once it has, they may be gone from the store.

    Returns:
        Digest of each output artifact, by name.

    Raises:
        CaravanError: the stage, the registry or the store failed in a way that a user can mend.
        Exception: whatever else the stage raised; the registry keeps its traceback.
        KeyboardInterrupt, SystemExit: the process was asked to stop (SIGINT, SIGTERM).
    """
    settings = settings or load_settings()
    _limit_threads(config)
    with open_patiently(settings) as registry:
        run = registry.get_run(run_id)
        seed = stage_seed(run.seed, node)
        directory = recipe_dir or Path(run.recipe_dir or ".")
        with _marks_what_cannot_start(registry, run.id, node, stage):
            module = load_stage(stage)
            store = open_store(settings.resolved_store_url, settings)
            key = stage_key(module, config, inputs, seed, recipe_dir=directory)
        try:
            with StopSignals() as stop_signals:
                return _Execution(
                    node=node, stage=stage, module=module, config=config, inputs=dict(inputs),
                    run=run, key=key, seed=seed, recipe_dir=directory, settings=settings,
                    registry=registry, store=store, stop_signals=stop_signals,
                    selection=selection,
                ).outputs()  # fmt: skip
        except StageStopped as stopped:
            if stopped.signal_number == signal.SIGINT:
                raise KeyboardInterrupt from stopped
            raise SystemExit(CONTINUE_EXIT_CODE) from stopped


@contextmanager
def _marks_what_cannot_start(
    registry: Registry, run_id: str, node: str, stage: str
) -> Iterator[None]:
    """Record the failure of a stage that has not even a key, unless it has succeeded before."""
    try:
        yield
    except Exception as error:
        with suppress(RegistryError):
            known = {s.node: s for s in registry.stage_runs(run_id)}.get(node)
            if known is None or known.state is not State.SUCCEEDED:
                opened = registry.open_stage_run(run_id, node, stage, known.key if known else "")
                registry.finish_stage_run(opened.id, State.FAILED, error=described(error))
        raise


def _limit_threads(config: BaseModel) -> None:
    """Fix the number of threads before the libraries that read it are imported.

    Waiting threads sleep: spinning ones take the cores from other processes, and a step of a few
    milliseconds then lasts seconds.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpus = getattr(getattr(config, "resources", None), "cpus", None)
    if cpus is not None:
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(cpus)


# --- one execution ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Execution:
    node: str
    stage: str
    module: Stage
    config: BaseModel
    inputs: dict[str, str]
    run: RunRow
    key: str
    seed: int
    recipe_dir: Path
    settings: Settings
    registry: Registry
    store: Store
    stop_signals: StopSignals
    selection: Selection | None

    @property
    def directory(self) -> Path:
        return self.settings.work_dir / self.key

    def outputs(self) -> dict[str, str]:
        """The stage's outputs: found, or made."""
        if (found := self._reuse()) is not None:
            return found
        stage_runs = self._patiently(lambda: self.registry.stage_runs(self.run.id))
        before = next((stage for stage in stage_runs if stage.node == self.node), None)
        opened = self._patiently(
            lambda: self.registry.open_stage_run(self.run.id, self.node, self.stage, self.key)
        )
        with self._marks_the_end(opened):
            lock = self.settings.work_dir / f"{self.key}.lock"
            with exclusive(lock, on_wait=lambda: self._tell_waiting(opened)), Warned() as warned:
                found = self._reuse()
                if found is not None:
                    return found
                if before is not None:
                    self._tell_changed(before)
                return self._make(opened, warned)

    def _tell_waiting(self, opened: StageRunRow) -> None:
        logger.info("%s: another process is at the same work; waiting for it", self.node)
        with suppress(RegistryUnavailableError):
            self.registry.heartbeat(opened.id)

    def _reuse(self) -> dict[str, str] | None:
        """The outputs of a finished stage run with our key, if the store still has all that are
        needed."""
        origin = self._patiently(lambda: self.registry.find_finished(self.key))
        if origin is None:
            return None
        gone = self._patiently(
            lambda: missed(origin.outputs, self.selection, self.registry, self.store)
        )
        if gone:
            logger.warning(
                "%s: output %s is no longer in the store; running again", self.node, some(gone)
            )
            return None
        if (origin.run_id, origin.node) != (self.run.id, self.node):
            opened = self._patiently(
                lambda: self.registry.open_stage_run(self.run.id, self.node, self.stage, self.key)
            )
            if not self._patiently(lambda: self.registry.reuse_stage_run(opened.id, origin)):
                return self._reuse()  # its run was deleted meanwhile; there may be another
        discard(self.directory)  # of one stopped after it published
        return dict(origin.outputs)

    def _tell_changed(self, before: StageRunRow) -> None:
        """Warn where what an earlier attempt did cannot be gone on with."""
        if before.key in ("", self.key):
            return
        changed = [n for n, digest in self.inputs.items() if before.inputs.get(n) != digest]
        what = f"its input {', '.join(changed)}" if changed else "a file it reads, or its code,"
        logger.warning("made anew: %s has changed since this stage last ran", what)

    def _make(self, opened: StageRunRow, warned: Warned) -> dict[str, str]:
        """Run the stage and publish what it made."""
        self.directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(self.directory / "metrics.jsonl")
        reporter = Reporter(
            self.registry, opened.id, journal, warned, self.settings.heartbeat_seconds
        )
        try:
            self._patiently(lambda: self._start(opened.id))
            reporter.start()
            made = self._made_before()
            if made is None:
                made = self._run_stage(journal, reporter)
            published = self._publish(made)
            reporter.stop()
            self._patiently(reporter.deliver)
            while True:
                try:
                    self._patiently(partial(self._succeed, opened.id, published, made.result))
                    break
                except _CollectedError:
                    published = self._publish(made)
        finally:
            reporter.stop()
            with suppress(RegistryError):  # a last chance; the journal keeps what stays undelivered
                reporter.deliver()
            journal.close()
        self._forget_checkpoints()
        discard(self.directory)
        return {name: artifact.digest for name, artifact in published.items()}

    def _publish(self, made: Made) -> dict[str, Artifact]:
        return {
            name: self._patiently(
                lambda name=name, kind=kind: self.store.put(self._output(name), kind)  # type: ignore[misc]
            )
            for name, kind in made.kinds.items()
        }

    def _start(self, stage_run_id: int) -> None:
        for digest in self.inputs.values():
            manifest = self.store.manifest(digest)
            self.registry.add_artifact(manifest.artifact, self.store.uri(digest))
        given = getattr(self.config, "resources", None)
        self.registry.start_stage_run(
            stage_run_id, self.inputs, pod=self.settings.pod_name,
            resources={} if given is None else given.model_dump(mode="json"),
        )  # fmt: skip

    def _run_stage(self, journal: Journal, reporter: Reporter) -> Made:
        inputs = {
            name: self._patiently(lambda digest=digest: self.store.fetch(digest))  # type: ignore[misc]
            for name, digest in self.inputs.items()
        }
        for name, path in inputs.items():
            digest = self.inputs[name]
            manifest = self._patiently(lambda digest=digest: self.store.manifest(digest))  # type: ignore[misc]
            if manifest.kind not in ANY_TEMPLATE:
                check_template(path, f"{self.node}: input {name} ({digest[:12]})")
        context = LocalContext(
            self.directory, seed=self.seed, recipe_dir=self.recipe_dir, journal=journal,
            reporter=reporter, remote_checkpoints=self._remote_checkpoints(),
        )  # fmt: skip
        before = cpu_seconds()
        result = self.module.run(self.config, inputs, context)
        used = {CPU_SECONDS: cpu_seconds() - before, **peak_memory()}
        result = replace(result, metrics={**result.metrics, **used})
        for name in context.kinds:
            if next(list_files(self._output(name)), None) is None:
                raise StageError(f"{self.node}: the stage wrote nothing into its output {name!r}")
            stamp(self._output(name))
        made = Made(context.kinds, plain_floats(result))
        made.save(self.directory / "made.json")
        return made

    def _remote_checkpoints(self) -> S3Checkpoints | None:
        """Where the store is one that other machines reach."""
        if urlsplit(self.settings.resolved_store_url).scheme != "s3":
            return None
        from caravan.store.checkpoints import S3Checkpoints

        return S3Checkpoints(self.settings, self.key)

    def _forget_checkpoints(self) -> None:
        remote = self._remote_checkpoints()
        if remote is not None:
            with suppress(StoreError):  # they cost room, no more
                remote.keep([])

    def _made_before(self) -> Made | None:
        """What an earlier attempt made that ended before all of it was published."""
        path = self.directory / "made.json"
        return Made.load(path) if path.exists() else None

    def _output(self, name: str) -> Path:
        return self.directory / "outputs" / name

    def _succeed(
        self, stage_run_id: int, published: Mapping[str, Artifact], result: StageResult
    ) -> None:
        self.registry.succeed_stage_run(
            stage_run_id,
            {
                name: (artifact, self.store.uri(artifact.digest))
                for name, artifact in published.items()
            },
            metrics=result.metrics,
            scores=result.scores,
            metadata={"chat_template_sha256": self._template(published)},
            confirm=lambda: self._confirm(published),
        )

    def _template(self, published: Mapping[str, Artifact]) -> str:
        """Hash of the chat template; a stage makes all of its outputs with one."""
        found = (recorded_hash(self._output(name)) for name in published)
        return next(filter(None, found), TEMPLATE_HASH)

    def _confirm(self, published: Mapping[str, Artifact]) -> None:
        """
        Raises:
            _CollectedError: an artifact went before the registry knew that a run refers to it.
        """
        if not all(self.store.exists(artifact.digest) for artifact in published.values()):
            raise _CollectedError

    # --- when it does not go well -----------------------------------------------------------

    @contextmanager
    def _marks_the_end(self, opened: StageRunRow) -> Iterator[None]:
        """Record in the registry how the stage ended, if not well."""
        try:
            yield
        except StageStopped as stopped:
            self.stop_signals.ignore()
            self._mark(opened, State.CANCELLED, str(stopped), CANCEL_PATIENCE_SECONDS)
            raise
        except BaseException as error:
            full = disk_full(error)
            if full is None:
                self._mark(opened, State.FAILED, described(error))
                raise
            plain = StageError(
                f"{self.node}: {full} while working in {self.directory}; free some "
                "space or point CARAVAN_HOME at another disk, then resume the run"
            )
            self._mark(opened, State.FAILED, described(plain, error))
            raise plain from error

    def _mark(
        self, opened: StageRunRow, state: State, text: str, patience_seconds: float | None = None
    ) -> None:
        try:
            self._patiently(
                lambda: self.registry.finish_stage_run(opened.id, state, error=text),
                patience_seconds,
            )
        except RegistryError as error:  # what stopped the stage matters more
            logger.error("%s: could not record that it %s: %s", self.node, state, error)

    def _patiently(self, attempt: Callable[[], T], patience_seconds: float | None = None) -> T:
        patience = self.settings.patience_seconds if patience_seconds is None else patience_seconds
        return patiently(attempt, patience)


class _CollectedError(Exception):
    """What was published is no longer in the store: it is published again."""
