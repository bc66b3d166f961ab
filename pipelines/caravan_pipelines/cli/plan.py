"""caravan plan: what a recipe will take, and how far such a plan was off."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.errors import RecipeError
from caravan.planning.compare import Comparison, compare
from caravan.planning.estimate import plan_recipe
from caravan.planning.plan import Plan, StagePlan
from caravan.registry import Registry, StageRunRow, open_registry
from caravan.settings import load_settings
from caravan_pipelines.cli.common import print_json, read_recipe
from caravan_pipelines.cli.tables import duration, print_whole
from caravan_pipelines.graph import stage_graph


def plan(
    recipe: Path, overrides: list[str], *, gpu: str | None, run: str | None, as_json: bool
) -> None:
    """Print the plan of a recipe; exit code 1 says that a stage does not fit its devices."""
    loaded, directory = read_recipe(recipe, overrides)
    made = plan_recipe(loaded, stage_graph(loaded), directory, gpu=gpu)
    compared = None
    if run is not None:
        with open_registry(load_settings()) as registry:
            of = registry.get_run(run).recipe["name"]
            if of != loaded.name:
                raise RecipeError(
                    f"run {run} is of recipe {of}, and this is the plan of {loaded.name}"
                )
            compared = compare(made, measured_stages(registry, run))
    if as_json:
        print_json(as_data(made, compared))
    else:
        _print(made, compared)
    if made.problems:
        sys.exit(1)


def measured_stages(registry: Registry, run: str) -> list[StageRunRow]:
    """The stage runs that did the work of a run, each under its node's name in that run."""
    found = []
    for stage in registry.stage_runs(registry.get_run(run).id):
        origin = registry.stage_run(stage.origin_id) if stage.reused_from else stage
        found.append(replace(origin, node=stage.node))
    return found


def as_data(plan: Plan, compared: Comparison | None) -> dict[str, Any]:
    """What `caravan plan --json` prints."""
    data = {
        "recipe": plan.recipe,
        "parameters": plan.parameters,
        "parameters_known_by": plan.known_by,
        "gpu_hours": plan.gpu_hours,
        "core_hours": plan.core_hours,
        "seconds": plan.seconds,
        "stages": [
            asdict(stage) | {"gpu_hours": stage.gpu_hours, "core_hours": stage.core_hours}
            for stage in plan.stages
        ],
        "assumptions": list(plan.notes),
        "problems": list(plan.problems),
    }
    if compared is not None:
        data["comparison"] = {
            "planned_seconds": compared.planned_seconds,
            "measured_seconds": compared.seconds,
            "typical_factor": compared.typical_factor,
            "stages": [
                asdict(stage) | {"time_ratio": stage.time_ratio, "memory_ratio": stage.memory_ratio}
                for stage in compared.stages
            ],
        }
    return data


def _print(plan: Plan, compared: Comparison | None) -> None:
    console = Console()
    console.print(
        f"[bold]{plan.recipe}[/bold]: {plan.parameters:,} parameters, from {plan.known_by}",
        highlight=False,
    )
    print_whole(console, plan_table(plan))
    total = f"{plan.core_hours:,.2f} core-hours"
    if plan.gpu_hours:
        total = f"{plan.gpu_hours:,.0f} GPU-hours and " + total
    console.print(f"{total}; {duration(plan.seconds)} one stage after another", highlight=False)
    for note in plan.notes:
        console.print(Text(f"assumed: {note}", style="dim"))
    for problem in plan.problems:
        console.print(Text(f"does not fit: {problem}", style="red"))
    if compared is not None:
        print_whole(console, comparison_table(compared))
        console.print(
            f"planned {duration(compared.planned_seconds)}, measured {duration(compared.seconds)}; "
            f"a stage is off by a factor of {compared.typical_factor:.2f} (mean, by time)",
            highlight=False,
        )


def plan_table(plan: Plan) -> Table:
    table = Table("stage", title="Plan", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("on", "rows", "tokens", "GiB", "tokens a pass", "fits", "time", "device-hours")
    for name in names:
        table.add_column(name, justify="right")
    for stage in plan.stages:
        table.add_row(
            Text(stage.node), f"{stage.devices} {stage.device}", f"{stage.rows:,.0f}",
            _large(stage.tokens), _memory(stage), *_passes(stage), duration(stage.seconds),
            f"{stage.device_hours:,.2f}", style="red" if stage.problem else "",
        )  # fmt: skip
    return table


def comparison_table(compared: Comparison) -> Table:
    table = Table("stage", title="Planned and measured", box=SIMPLE_HEAD)
    for name in ("planned", "measured", "planned / measured", "GiB planned", "GiB measured"):
        table.add_column(name, justify="right")
    for stage in compared.stages:
        table.add_row(
            Text(stage.node), duration(stage.planned_seconds), duration(stage.seconds),
            f"{stage.time_ratio:.2f}" if stage.time_ratio else "",
            f"{stage.planned_gib:.2f}", f"{stage.gib:.2f}" if stage.gib else "",
        )  # fmt: skip
    return table


def _large(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f}" if number else ""


def _memory(stage: StagePlan) -> str:
    return f"{stage.memory_gib:.1f} of {stage.device_memory_gib:g}"


def _passes(stage: StagePlan) -> tuple[str, str]:
    """`4,096 x 2`: tokens of a pass, and passes of a step; and the most tokens that fit."""
    if stage.tokens_per_pass is None:
        return "", ""
    fits = stage.fitting_tokens_per_pass
    return f"{stage.tokens_per_pass:,} x {stage.passes_per_step}", f"{fits:,}" if fits else "none"
