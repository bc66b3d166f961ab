"""Launch runs on Kubeflow Pipelines, follow them, and what `caravan launch --dry-run` says."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from caravan.cluster.profile import load_profile
from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.registry import Registry, RunRow, State, open_registry
from caravan.settings import Settings, load_settings
from caravan_pipelines.cli.common import read_recipe
from caravan_pipelines.cli.follow import Lines, Seen, look
from caravan_pipelines.cli.tables import duration, print_results, print_table
from caravan_pipelines.launch import kubeflow
from caravan_pipelines.launch.local_log import lines_of

if TYPE_CHECKING:
    from caravan_pipelines.pods import Placed

POLL_SECONDS = 2.0


def launch(
    recipe: Path, overrides: list[str], tags: tuple[str, ...], *, dry_run: bool, detach: bool
) -> None:
    loaded, directory = read_recipe(recipe, overrides)
    settings, console = load_settings(), Console()
    if dry_run:
        show_plan(loaded, settings, console)
        return
    submitted = kubeflow.launch(loaded, settings, recipe_dir=directory, tags=tags)
    _tell(submitted, console)
    if detach:
        console.print(f"follow it with: caravan follow {submitted.run_id}", soft_wrap=True)
    else:
        follow(submitted.run_id, settings, console)


def resume(run: RunRow, settings: Settings, *, detach: bool = False) -> None:
    console = Console()
    _tell(kubeflow.resume(run, settings), console)
    if not detach:
        follow(run.id, settings, console)


def _tell(submitted: kubeflow.Submitted, console: Console) -> None:
    console.print(
        f"run {submitted.run_id}\n"
        f"Kubeflow Pipelines: {submitted.link}  (submitted in {submitted.seconds:.1f} s)",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def follow(run_id: str, settings: Settings, console: Console) -> None:
    """Tell how stages go until the run ends; it goes on if this is interrupted."""
    lines, waits, seen = Lines(console), None, list[Seen]()
    with open_registry(settings) as registry:
        while True:
            kubeflow.keep_up(registry.get_run(run_id), registry, settings)
            run = registry.get_run(run_id)
            seen = look(registry.stage_runs(run_id), registry, seen)
            for one in seen:
                if one.stage.state.finished:
                    lines.end(one, _first_line(one.stage.error) if one.stage.error else "")
                else:
                    lines.going(one)
            if run.state.finished:
                break
            if run.error != waits and (waits := run.error):
                console.print(f"waiting: {waits}", highlight=False, markup=False, soft_wrap=True)
            time.sleep(POLL_SECONDS)
        finish(run, registry, settings, console)


def finish(run: RunRow, registry: Registry, settings: Settings, console: Console) -> None:
    from caravan_pipelines.cli.run import export_report

    if run.state is not State.SUCCEEDED:
        why = f": {run.error}" if run.error else ""
        console.print(
            f"run {run.id} {run.state}{why}\n"
            f"finished stages are kept; continue with: caravan resume {run.id}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(1)
    print_results(console, registry.scores(run.id), registry.stage_runs(run.id))
    if report := export_report(run.id, registry, settings):
        console.print(f"report:    {report}", highlight=False, markup=False, soft_wrap=True)


def logs(run: RunRow, stage: str | None, settings: Settings, *, follow: bool) -> None:
    """Print what the pods of a run, or of one stage of it, have written, oldest first.

    Raises:
        CaravanError: the cluster cannot be asked, or has no pod of them any more.
    """
    from caravan.cluster.logs import pod_logs
    from caravan.cluster.pod import RUN_LABEL, label_value

    namespace = load_profile(settings).namespace
    if follow:
        raise CaravanError(
            "pods are followed with: kubectl logs --follow --max-log-requests 50 "
            f"--namespace {namespace} --selector {RUN_LABEL}={label_value(run.id)}"
        )
    found = False
    for title, written in pod_logs(run.id, namespace, run.backend_run_id or ""):
        lines = written if stage is None else list(lines_of(stage, written))
        if stage is not None and not lines:
            continue
        found = True
        print(f"=== {title}")
        for line in lines:
            print(line)
    if not found:
        of = "" if stage is None else f" that has written a line of {stage}"
        raise CaravanError(
            f"the cluster has no pod{of} of run {run.id} any more; its stages' errors are in "
            f"`caravan show {run.id}`"
        )


def watch(interval_seconds: float) -> None:
    """Keep the registry in step with Kubeflow Pipelines, until this process is stopped."""
    settings, said = load_settings(), list[str]()
    while True:
        try:
            errors = kubeflow.sync_all(settings)
        except CaravanError as away:
            errors = [str(away)]
        for error in errors:
            if error not in said:  # said once, asked again
                print(f"error: {error}", file=sys.stderr, flush=True)
        said = errors
        time.sleep(interval_seconds)


def show_plan(recipe: Recipe, settings: Settings, console: Console) -> None:
    """Which pods a run has, what each asks for, and what starting them costs."""
    profile = load_profile(settings)
    tasks = kubeflow.plan(recipe, profile, settings)
    table = Table(box=None, header_style="bold")
    for name, justify in (("stages", "left"), ("pods", "right"), ("cpu", "right"),
                          ("memory", "right"), ("gpus", "left"), ("image", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for task in tasks:
        table.add_row(*_row(task))
    print_table(console, table)
    stages, pods = sum(len(task.nodes) for task in tasks), sum(task.pods for task in tasks)
    console.print(
        f"{stages} stages in {pods} pods; about {profile.pod_overhead_seconds:g} s each to start, "
        f"{duration(pods * profile.pod_overhead_seconds)} in all "
        f"({duration((stages - pods) * profile.pod_overhead_seconds)} saved by sharing pods)",
        highlight=False,
    )


def _row(task: Placed) -> list[str]:
    names = ", ".join(task.nodes[:4]) + (f", ... ({len(task.nodes)})" if task.nodes[4:] else "")
    gpus = f"{task.pod.gpus} {task.pod.gpu_resource}" if task.pod.gpus else ""
    job = f"TrainJob on {task.job_nodes} nodes" if task.job_nodes > 1 else ""
    return [names, str(task.pods), task.pod.cpu, task.pod.memory, job or gpus, task.pod.image]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
