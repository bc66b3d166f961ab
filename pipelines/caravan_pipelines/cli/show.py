"""Show runs: as tables, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from caravan.errors import CaravanError, without_traceback
from caravan.evals.models import model_of
from caravan.registry import Registry, RunRow, open_registry
from caravan.settings import load_settings
from caravan_pipelines.cli.tables import (
    STATE_STYLE,
    print_results,
    print_table,
    runs_table,
    stages_table,
)
from caravan_pipelines.cli.training import last_metrics, print_course
from caravan_pipelines.launch.local import run_dir


def runs(limit: int, *, as_json: bool) -> None:
    with open_registry() as registry:
        found = registry.list_runs(limit)
    if as_json:
        rows = [
            {"run": r.id, "state": r.state, "seed": r.seed, "owner": r.owner, "tags": r.tags}
            for r in found
        ]
        print(json.dumps(rows, indent=2))
    else:
        if found:
            print_table(Console(), runs_table(found))
        else:
            print("no run yet: caravan run pocket")


def show(run_id: str, *, as_json: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
        if run.backend == "kubeflow":
            _refresh(run, registry)
            run = registry.get_run(run.id)
        if as_json:
            print(json.dumps(as_data(run, registry), indent=2))
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


def _refresh(run: RunRow, registry: Registry) -> None:
    """Ask Kubeflow Pipelines; where it does not answer, what is known is shown."""
    from caravan_pipelines.launch.kfp_state import sync

    try:
        sync(run, registry, load_settings())
    except CaravanError as error:
        print(f"warning: {error}", file=sys.stderr)


def as_data(run: RunRow, registry: Registry) -> dict[str, Any]:
    """What `caravan show --json` prints."""
    return {
        "run": run.id,
        "state": run.state,
        "recipe": run.name,
        "recipe_digest": run.recipe_digest,
        "effective_recipe": dict(run.recipe),
        "caravan_version": run.caravan_version,
        "backend": run.backend,
        "backend_run_id": run.backend_run_id,
        "seed": run.seed,
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
            }
            for score in registry.scores(run.id)
        ],
    }
