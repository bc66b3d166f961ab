"""Run a recipe with every combination of some values, and compare what comes out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.text import Text

from caravan.errors import CaravanError
from caravan.evals.sweeps import sweep_runs
from caravan.registry import STOPPED, State, open_registry
from caravan.settings import Settings, load_settings
from caravan_pipelines.cli import launch
from caravan_pipelines.cli.common import read_recipe
from caravan_pipelines.cli.run import execute
from caravan_pipelines.cli.sweep_results import Results
from caravan_pipelines.launch import kubeflow, local
from caravan_pipelines.sweep import Member, new_tag, sweep_members


def sweep(
    recipe: Path, axes: list[str], overrides: list[str], tags: tuple[str, ...], *, on_cluster: bool
) -> None:
    settings, console = load_settings(), Console()
    _, directory = read_recipe(recipe, overrides)
    members = sweep_members(lambda values: read_recipe(recipe, values)[0], axes, overrides)
    tag = new_tag()
    tags = (*tags, tag)
    if on_cluster:
        submitted = kubeflow.launch_together(
            [member.recipe for member in members], settings, recipe_dir=directory,
            tags=[(*tags, *member.tags) for member in members],
        )  # fmt: skip
        with open_registry(settings) as registry:
            for run_id, labels in Results(tag, registry).labels.items():
                console.print(Text("  ".join((f"run {run_id}", *labels))), soft_wrap=True)
        for of_seed in submitted:
            console.print(f"Kubeflow Pipelines: {of_seed.link}", highlight=False, soft_wrap=True)
        console.print(f"compare them with: caravan show {tag}", highlight=False, soft_wrap=True)
        return
    create_runs(members, tags, directory, settings)
    execute_runs(tag, settings, console)


def resume(tag: str) -> None:
    """Continue a sweep with those of its runs that have not succeeded."""
    settings = load_settings()
    with open_registry(settings) as registry:
        runs = sweep_runs(tag, registry)
    if runs[0].backend == "local":
        execute_runs(tag, settings, Console())
        return
    for run in runs:
        if run.state in STOPPED:
            launch.resume(run, settings, detach=True)


def create_runs(
    members: Sequence[Member], tags: tuple[str, ...], directory: Path, settings: Settings
) -> None:
    """Register a run of each member; none stays if one is refused, or Ctrl-C comes between."""
    made: list[str] = []
    try:
        for member in members:
            made.append(
                local.create_run(
                    member.recipe, settings, recipe_dir=directory, tags=(*tags, *member.tags)
                )
            )
    except (CaravanError, KeyboardInterrupt):
        with open_registry(settings) as registry:
            for run_id in made:
                registry.update_run_state(run_id, State.CANCELLED)
            registry.delete_runs(made)
        raise


def execute_runs(tag: str, settings: Settings, console: Console) -> None:
    """Execute the runs of a sweep that have not succeeded, one after the other, and compare all."""
    with open_registry(settings) as registry:
        results = Results(tag, registry)
        waiting = [run.id for run in results.runs if run.state in (State.PENDING, *STOPPED)]
        for run_id in waiting:
            registry.update_run_state(run_id, State.PENDING)
    refusal = None
    with _kept_waiting(waiting, settings):
        while waiting:
            run_id = waiting.pop(0)
            if not _waits(run_id, settings):
                console.print(f"run {run_id} does not wait any more: it is left out")
                continue
            console.print(Text("  ".join(results.labels[run_id]), style="bold"), soft_wrap=True)
            try:
                execute(run_id, settings, detach=False)
            except SystemExit:  # the run did not succeed, and has said why
                if _state(run_id, settings) is State.CANCELLED:
                    break
            except KeyboardInterrupt:  # between two runs
                waiting.insert(0, run_id)
                break
            except CaravanError as error:  # what keeps it from starting keeps the others too
                refusal = error
                break
    with open_registry(settings) as registry:
        for run_id in waiting if refusal is None else ():
            if registry.get_run(run_id).state is State.PENDING:
                registry.update_run_state(run_id, State.CANCELLED)
        results = Results(tag, registry)
        results.show(console)
    left = sum(run.state is not State.SUCCEEDED for run in results.runs)
    if left:
        console.print(
            f"{left} of {len(results.runs)} runs have not succeeded; "
            f"continue with: caravan resume {tag}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if refusal is not None:
        raise refusal
    if left:
        sys.exit(1)


def _waits(run_id: str, settings: Settings) -> bool:
    """Whether nobody has cancelled, deleted or executed the run in the meantime."""
    with open_registry(settings) as registry:
        found = registry.runs([run_id])
    return any(run.state in (State.PENDING, State.INTERRUPTED) for run in found)


def _state(run_id: str, settings: Settings) -> State:
    with open_registry(settings) as registry:
        return registry.get_run(run_id).state


@contextmanager
def _kept_waiting(run_ids: Sequence[str], settings: Settings) -> Iterator[None]:
    """Tell the registry meanwhile that these runs, which others may leave, will have their turn."""
    over = Event()

    def beat() -> None:
        with suppress(CaravanError), open_registry(settings) as registry:
            while not over.wait(settings.heartbeat_seconds):
                for run_id in tuple(run_ids):
                    with suppress(CaravanError):  # the registry is away: the next beat tells
                        registry.heartbeat_run(run_id)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
