"""Run, follow, stop and continue runs on this machine."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from caravan.errors import CaravanError, RecipeError, without_traceback
from caravan.registry import LIVE, Registry, RunRow, StageRunRow, State, open_registry
from caravan.settings import Settings, load_settings
from caravan.stages.patience import open_patiently, patiently
from caravan.store import open_store
from caravan.store.copies import copy_out
from caravan_pipelines.cli import launch
from caravan_pipelines.cli.common import read_recipe
from caravan_pipelines.cli.follow import follow
from caravan_pipelines.cli.show import show
from caravan_pipelines.cli.tables import print_results, print_table, stages_table
from caravan_pipelines.cli.training import print_course
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch import backend, local
from caravan_pipelines.launch.local_log import growing, lines_of, stage_lines
from caravan_pipelines.run_data import stored_recipe

TOLD_BY_CHECKS = ("huggingface_hub.utils", "caravan.training.tokenize")
"""Loggers whose warnings a dry run says in its own words."""


def run(
    recipe: Path, overrides: list[str], tags: tuple[str, ...], *, dry_run: bool, detach: bool
) -> None:
    loaded, directory = read_recipe(recipe, overrides)
    settings = load_settings()
    if dry_run:
        from caravan_pipelines.dry_run import dry_run as check

        for name in TOLD_BY_CHECKS:
            logging.getLogger(name).setLevel(logging.ERROR)
        check(loaded, directory, settings, Console())
        return
    run_id = local.create_run(loaded, settings, recipe_dir=directory, tags=tags)
    execute(run_id, settings, detach=detach)


def resume(run_id: str) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
    if run.state is State.SUCCEEDED:
        print(f"run {run.id} has succeeded: nothing to resume; see caravan show {run.id}")
        return
    if run.backend == "kubeflow":
        launch.resume(run, settings)
        return
    execute(run.id, settings, detach=False)


def cancel(run_id: str) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
    backend.cancel(run, settings)
    print(f"stopping {run.id}; continue it with: caravan resume {run.id}")


def follow_run(run_id: str) -> None:
    """Follow a run that another process executes; it goes on if this is interrupted."""
    settings, console = load_settings(), Console()
    with open_patiently(settings) as registry:
        run = registry.get_run(run_id)
        if run.backend == "kubeflow" and not run.state.finished:
            launch.follow(run.id, settings, console)
            return
        try:
            goes_on = partial(_goes_on, run.id, registry, settings)
            follow(
                stored_recipe(run), run.id, registry, lambda: not goes_on(), console,
                settings.patience_seconds, run.created_at,
            )  # fmt: skip
        except KeyboardInterrupt:
            console.print(f"the run goes on; stop it with: caravan cancel {run.id}", soft_wrap=True)
            return
    show(run.id, as_json=False)


def _goes_on(run_id: str, registry: Registry, settings: Settings) -> bool:
    state = patiently(lambda: registry.get_run(run_id), settings.patience_seconds).state
    return state in LIVE


def logs(run_id: str, stage: str | None, *, follow: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
        if stage is not None:
            _require_stage(run, stage)
        if run.backend == "kubeflow":
            launch.logs(run, stage, settings, follow=follow)
            return
        log = local.run_dir(settings, run.id) / "log.txt"
        if not log.exists():
            raise CaravanError(f"run {run.id} has no log on this machine ({log} does not exist)")
        with log.open(encoding="utf-8", errors="replace") as file, suppress(KeyboardInterrupt):
            written = (
                growing(file, lambda: _goes_on(run.id, registry, settings)) if follow else file
            )
            for line in stage_lines(written if stage is None else lines_of(stage, written)):
                print(line, end="", flush=follow)


def _require_stage(run: RunRow, stage: str) -> None:
    nodes = [node.name for node in stage_graph(stored_recipe(run))]
    if stage not in nodes:
        raise CaravanError(f"run {run.id} has no stage {stage!r}; it has {', '.join(nodes)}")


def execute(run_id: str, settings: Settings, *, detach: bool) -> None:
    """Start or continue a run, follow it to its end and show what came out."""
    console, since = Console(), datetime.now(UTC)
    started = local.start(run_id, settings, detached=detach)
    console.print(
        Text.assemble("run ", (run_id, "bold"), f"  (log: {started.log})"), soft_wrap=True
    )
    if detach:
        console.print(
            f"follow it with: caravan follow {run_id}, or its log: caravan logs --follow {run_id}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return
    with open_patiently(settings) as registry:
        run = patiently(lambda: registry.get_run(run_id), settings.patience_seconds)
        try:
            follow(
                stored_recipe(run), run_id, registry, lambda: started.process.poll() is not None,
                console, settings.patience_seconds, since,
            )  # fmt: skip
        except RecipeError:
            pass  # the started process finds that too, and records it
        except KeyboardInterrupt:
            console.print(
                f"stopping ...; go on later with: caravan resume {run_id}", soft_wrap=True
            )
            started.stop()
        _finish(run_id, registry, settings, started, console)


def _finish(
    run_id: str, registry: Registry, settings: Settings, started: local.LocalRun, console: Console
) -> None:
    code = started.process.wait()
    local.refuse_executed(run_id, settings)  # by another process, which was faster than ours
    run, stage_runs = patiently(lambda: _end(run_id, registry), settings.patience_seconds)
    print_table(console, stages_table(stage_runs))
    patiently(lambda: print_course(console, registry, stage_runs), settings.patience_seconds)
    if run.state is not State.SUCCEEDED:
        failed = [stage for stage in stage_runs if stage.state is State.FAILED]
        if run.error and not failed:
            console.print(Text(without_traceback(run.error)), soft_wrap=True)
        for stage in failed:
            reason = without_traceback(stage.error or "no error was recorded")
            console.print(Text(f"stage {stage.node} failed: {reason}"), soft_wrap=True)
        console.print(
            f"run {run_id} {run.state}; its log is {started.log}\n"
            f"finished stages are kept; continue with: caravan resume {run_id}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(code or 1)
    scores = patiently(lambda: registry.scores(run_id), settings.patience_seconds)
    print_results(console, scores, stage_runs)
    report = patiently(lambda: export_report(run_id, registry, settings), settings.patience_seconds)
    told = f"report:    {report}\n" if report else ""
    console.print(
        f"{told}dashboard: caravan dashboard   (http://localhost:8501)",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _end(run_id: str, registry: Registry) -> tuple[RunRow, list[StageRunRow]]:
    """How a run ended whose executing process has ended, and its stages."""
    if not registry.get_run(run_id).state.finished:  # the process died without a word
        registry.update_run_state(run_id, State.FAILED, error=f"the run: {local.LOST}")
        local.close_open_stages(run_id, registry, State.CANCELLED)
    return registry.get_run(run_id), registry.stage_runs(run_id)


def export_report(run_id: str, registry: Registry, settings: Settings) -> Path | None:
    """Copy the report of a finished run beside its log; returns the page, None where the recipe
    evaluates nothing."""
    stage = next((s for s in registry.stage_runs(run_id) if s.node == "report"), None)
    if stage is None:
        return None
    store = open_store(settings.resolved_store_url, settings)
    target = local.run_dir(settings, run_id) / "report"
    copy_out(store.fetch(stage.outputs["report"]), target)
    return target / "report.html"
