"""Show runs: as tables, or as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from caravan.access import local_user
from caravan.errors import CaravanError, without_traceback
from caravan.evals.models import model_of
from caravan.evals.sweeps import sweep_runs
from caravan.registry import SWEEP_TAG, Registry, RunRow, ScoreRow, State, open_registry
from caravan.settings import load_settings
from caravan_pipelines import actions
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.cli.sweep_results import Results
from caravan_pipelines.cli.tables import (
    STATE_STYLE,
    print_results,
    print_table,
    runs_table,
    stages_table,
)
from caravan_pipelines.cli.training import last_metrics, print_course
from caravan_pipelines.launch.local import run_dir


def runs(
    limit: int, *, state: str | None, tag: str | None, recipe: str | None, as_json: bool
) -> None:
    if state is not None and state not in list(State):
        raise CaravanError(f"--state {state}: there are {', '.join(State)}")
    wanted = None if state is None else State(state)
    with open_registry() as registry:
        found = registry.list_runs(limit, state=wanted, tag=tag, name=recipe)
        scores = registry.scores(*(run.id for run in found))
    if as_json:
        by_run: dict[str, list[ScoreRow]] = {run.id: [] for run in found}
        for score in scores:
            by_run[score.run_id].append(score)
        print_json([_run_as_data(run, by_run[run.id]) for run in found])
    elif found:
        print_table(Console(), runs_table(found, scores))
    elif (state, tag, recipe) != (None, None, None):
        print("no run is so: caravan runs lists all")
    else:
        print("no run yet: caravan run pocket")


def tag(run_id: str, added: Iterable[str], removed: Iterable[str]) -> None:
    """Add tags to a run and take tags from it; prints those that it has then.

    Raises:
        CaravanError: the run lacks a tag that is to be removed, or a tag may not be given.
    """
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
        if absent := set(removed).difference(run.tags):
            raise CaravanError(f"run {run.id} has no tag {', '.join(sorted(absent))}")
        tags = {*run.tags, *added}.difference(removed)
        actions.set_tags(local_user(settings.owner), run.id, tags, registry)
        print(f"{run.id}: {' '.join(registry.tags(run.id)) or 'no tag'}")


def show(run_id: str, *, as_json: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        if run_id.startswith(SWEEP_TAG):
            show_sweep(run_id, registry, as_json=as_json)
            return
        run = registry.get_run(run_id)
        if run.backend == "kubeflow":
            _refresh(run, registry)
            run = registry.get_run(run.id)
        if as_json:
            print_json(as_data(run, registry))
            return
        console = Console()
        console.print(
            Text.assemble((run.id, "bold"), "  ", (run.state, STATE_STYLE[run.state]),
                          f"  recipe {run.name} ({run.recipe_digest[:12]}), seed {run.seed}",
                          f", caravan {run.caravan_version}" if run.caravan_version else ""),
            soft_wrap=True,
        )  # fmt: skip
        stages = registry.stage_runs(run.id)
        print_table(console, stages_table(stages))
        print_course(console, registry, stages)
        print_results(console, registry.scores(run.id), stages)
        for stage in stages:
            if stage.error:
                reason = without_traceback(stage.error)
                console.print(Text(f"{stage.node}: {reason}", style="red"), soft_wrap=True)
                if reason != stage.error.strip():
                    console.print(Text(f"traceback: caravan logs {run.id}"), soft_wrap=True)
        if run.error and not any(stage.error for stage in stages):
            console.print(Text(without_traceback(run.error), style="red"), soft_wrap=True)
    report = run_dir(settings, run.id) / "report" / "report.html"
    if report.exists():
        console.print(Text(f"report: {report}"), soft_wrap=True)


def show_sweep(tag: str, registry: Registry, *, as_json: bool) -> None:
    for run in sweep_runs(tag, registry):
        if run.backend == "kubeflow":
            _refresh(run, registry)
    results = Results(tag, registry)
    if as_json:
        print_json(results.as_data())
    else:
        results.show(Console())


def _refresh(run: RunRow, registry: Registry) -> None:
    """Ask Kubeflow Pipelines; where it does not answer, what is known is shown."""
    from caravan_pipelines.launch.kfp_state import sync

    try:
        sync(run, registry, load_settings())
    except CaravanError as error:
        print(f"warning: {error}", file=sys.stderr)


def _run_as_data(run: RunRow, scores: Iterable[ScoreRow]) -> dict[str, Any]:
    """What `caravan runs --json` prints of each run, and `caravan show --json` besides."""
    started, finished = run.started_at, run.finished_at
    return {
        "run": run.id,
        "state": run.state,
        "recipe": run.name,
        "recipe_digest": run.recipe_digest,
        "seed": run.seed,
        "owner": run.owner,
        "tags": run.tags,
        "created_at": run.created_at.isoformat(),
        "started_at": None if started is None else started.isoformat(),
        "finished_at": None if finished is None else finished.isoformat(),
        "seconds": run.seconds,
        "scores": [
            {
                "stage": model_of(score.node) or score.node,
                "task": score.task,
                "metric": score.metric,
                "suite": score.suite,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "n": score.n,
                "truncated": score.truncated,
                "too_long": score.too_long,
                "undecided": score.undecided,
            }
            for score in scores
        ],
    }


def as_data(run: RunRow, registry: Registry) -> dict[str, Any]:
    """What `caravan show --json` prints."""
    return {
        **_run_as_data(run, registry.scores(run.id)),
        "effective_recipe": dict(run.recipe),
        "caravan_version": run.caravan_version,
        "backend": run.backend,
        "backend_run_id": run.backend_run_id,
        "error": run.error,
        "stages": [
            {
                "name": stage.node,
                "state": stage.state,
                "attempt": stage.attempt,
                "pod": stage.pod,
                "seconds": stage.seconds,
                "reused": stage.reused_from is not None,
                "artifacts": dict(stage.outputs),
                "done": stage.progress_done,
                "total": stage.progress_total,
                "metrics": last_metrics(stage, registry),
                "warnings": stage.warnings,
                "last_warning": stage.last_warning,
                "error": stage.error,
            }
            for stage in registry.stage_runs(run.id)
        ],
    }
