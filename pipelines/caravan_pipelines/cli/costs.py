"""caravan costs: what runs have used and cost."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.operations.costs import StageCost, project_of, run_costs, stage_cost
from caravan.registry import Registry, open_registry
from caravan.settings import Settings, load_settings
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.cli.tables import print_table


def of_run(run_id: str, *, as_json: bool) -> None:
    """Print the costs of one run, stage by stage."""
    settings = load_settings()
    with open_registry(settings) as registry:
        run = registry.get_run(run_id)
        costs = run_costs(run, registry, settings.prices)
    if as_json:
        data = {"run": run.id, "project": project_of(run), "currency": settings.currency,
                "stages": [asdict(cost) for cost in costs], **_sums(costs)}  # fmt: skip
        print_json(data)
        return
    table = _table(f"Costs of {run.id}", "stage", settings)
    for cost in costs:
        _row(table, cost.node, [cost])
    _row(table, "all", costs)
    print_table(Console(), table)


def of_projects(*, as_json: bool) -> None:
    """Print what each project has spent, and its budget."""
    settings = load_settings()
    with open_registry(settings) as registry:
        by_project = _by_project(registry, settings)
    if as_json:
        data = [
            {"project": project, "budget": settings.budgets.get(project),
             "currency": settings.currency, **_sums(costs)}
            for project, costs in sorted(by_project.items())
        ]  # fmt: skip
        print_json(data)
        return
    table = _table("Costs of projects", "project", settings)
    table.add_column("budget", justify="right")
    for project, costs in sorted(by_project.items()):
        budget = settings.budgets.get(project)
        _row(table, project or "(none)", costs, "" if budget is None else f"{budget:,.2f}")
    print_table(Console(), table)


def _by_project(registry: Registry, settings: Settings) -> dict[str, list[StageCost]]:
    found: dict[str, list[StageCost]] = {project: [] for project in settings.budgets}
    for run in registry.list_runs(limit=None):
        stages = registry.stage_runs(run.id)
        costs = [stage_cost(run.recipe, stage, settings.prices) for stage in stages]
        found.setdefault(project_of(run), []).extend(costs)
    return found


def _sums(costs: list[StageCost]) -> dict[str, float | None]:
    known = [cost.money for cost in costs if cost.money is not None]
    return {
        "gpu_hours": sum(cost.gpu_hours for cost in costs),
        "core_hours": sum(cost.core_hours for cost in costs),
        "money": sum(known) if len(known) == len(costs) else None,
    }


def _table(title: str, first: str, settings: Settings) -> Table:
    table = Table(first, title=title)
    for name in ("GPU-hours", "core-hours", settings.currency):
        table.add_column(name, justify="right")
    return table


def _row(table: Table, name: str, costs: list[StageCost], *more: str) -> None:
    sums = _sums(costs)
    money = "no price" if sums["money"] is None else f"{sums['money']:,.2f}"
    table.add_row(
        Text(name), f"{sums['gpu_hours']:,.2f}", f"{sums['core_hours']:,.2f}", money, *more
    )
