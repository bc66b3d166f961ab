"""Launch a run on this machine: `kfp.local` in a process of its own, steps as its subprocesses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caravan.errors import CaravanError
from caravan.orphans import launcher_environment
from caravan.recipe import Recipe
from caravan.recipe.checks import check_tasks
from caravan.recipe.io import recipe_digest
from caravan.registry import Registry
from caravan.registry.states import State
from caravan.settings import Settings, load_settings
from caravan.store import Store, open_store
from caravan_pipelines.budget import check_budget, project_tags
from caravan_pipelines.launch.lock import acquire, holder, name_holder

STOP = signal.SIGTERM


@dataclass(frozen=True)
class LocalRun:
    """A run whose pipeline is being executed by a child process."""

    run_id: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """Ask every step to stop, and wait until all have."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, STOP)
        self.process.wait()


def run_dir(settings: Settings, run_id: str) -> Path:
    """Where a local run keeps its log, its lock and its report."""
    return settings.home / "runs" / run_id


def create_run(
    recipe: Recipe, settings: Settings, *, recipe_dir: Path, tags: tuple[str, ...] = ()
) -> str:
    """Register a run of `recipe`; nothing is started.

    Raises:
        CaravanError: the recipe names a task that there is not, a verifier of its own cannot be
            imported, the home, the registry or the
            store cannot be used, or the project's budget is spent.
    """
    from caravan.verifiers import own_verifiers

    check_tasks(recipe, recipe_dir)
    with own_verifiers(recipe.verifiers, recipe_dir):
        pass  # each can be imported
    _make_directory(settings.home / "runs")
    check_writable(open_store(settings.resolved_store_url, settings))
    with Registry(settings.resolved_registry_url) as registry:
        check_budget(recipe, recipe_dir, settings, registry)
        return registry.create_run(
            recipe.model_dump(mode="json"),
            name=recipe.name,
            seed=recipe.seed,
            recipe_digest=recipe_digest(recipe),
            owner=settings.owner,
            recipe_dir=recipe_dir.resolve(),
            tags=project_tags(tags, settings),
        )


def start(run_id: str, settings: Settings, *, detached: bool = False) -> LocalRun:
    """Execute the run in a child process, from where it stopped if it was started before.

    A child that is not `detached` ends when this process does.

    Raises:
        CaravanError: the run is being executed already, or the home cannot be written to.
    """
    directory = run_dir(settings, run_id)
    _make_directory(directory)
    log = directory / "log.txt"
    try:
        lock = acquire(directory / "lock")  # one that has told of its end is waited for
    except CaravanError:
        refuse_executed(run_id, settings)
        raise
    command = [sys.executable, "-m", "caravan_pipelines.launch.runner", run_id, f"--lock={lock}"]
    try:
        with log.open("ab") as output, _held_back(STOP):
            process = subprocess.Popen(
                command + (["--detached"] if detached else []),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
                env=_environment(settings) | ({} if detached else launcher_environment()),
            )
        name_holder(lock, process.pid)
    finally:
        os.close(lock)
    return LocalRun(run_id, process, log)


def launch_detached(recipe: Recipe, *, recipe_dir: Path, settings: Settings | None = None) -> str:
    """Create and start a run that outlives this process; returns its id."""
    settings = settings or load_settings()
    run_id = create_run(recipe, settings, recipe_dir=recipe_dir)
    start(run_id, settings, detached=True)
    return run_id


def resume_detached(run_id: str, settings: Settings | None = None) -> None:
    """Continue a stopped run in a process that outlives this one."""
    start(run_id, settings or load_settings(), detached=True)


def cancel(run_id: str, settings: Settings | None = None) -> None:
    """Stop a run that is being executed on this machine; `resume` continues it.

    Raises:
        CaravanError: no process of this machine executes it.
    """
    settings = settings or load_settings()
    pid = holder(run_dir(settings, run_id) / "lock")
    if pid is None:
        raise CaravanError(f"run {run_id} is not being executed on this machine")
    os.killpg(pid, STOP)


LOST = (
    "its process ended without a word, as one does that is killed because memory ran out; "
    "the last lines of the run's log are what is known"
)
"""What is said of a stage, or a run, that could not say itself why it ended."""


def close_open_stages(
    run_id: str, registry: Registry, state: State, error: str | None = None
) -> None:
    """Give every stage run that a dead process left open its final `state`, as of its last beat:
    the run may go on days later."""
    for stage in registry.stage_runs(run_id):
        if not stage.state.finished:
            registry.finish_stage_run(stage.id, state, error=error, at=stage.heartbeat_at)


def check_writable(store: Store) -> None:
    """Publish and remove a small artifact: what a stage would otherwise learn after an hour."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "probe").write_text("may this process write here?\n")
        store.delete(store.put(Path(directory), "report").digest)


def refuse_executed(run_id: str, settings: Settings) -> None:
    """
    Raises:
        CaravanError: a process executes the run.
    """
    if pid := holder(run_dir(settings, run_id) / "lock"):
        raise CaravanError(
            f"run {run_id} is being executed by process {pid}: "
            f"follow it with `caravan follow {run_id}`, stop it with `caravan cancel {run_id}`"
        )


def _make_directory(directory: Path) -> None:
    """Make a directory of the home, and see that files can be made in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"?")  # a full disk has room for names
    except OSError as error:
        raise CaravanError(
            f"{directory}: {error.strerror}; free some space, or make it a directory that can be "
            "written to (CARAVAN_HOME names another place)"
        ) from error


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Block a signal; a process that is started meanwhile gets it when it unblocks it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment(settings: Settings) -> dict[str, Any]:
    return os.environ | settings.environment() | {"PYTHONUNBUFFERED": "1"}
