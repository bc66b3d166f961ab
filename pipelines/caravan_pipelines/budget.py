"""Budgets of projects: a launch that would exceed one is refused, with the numbers.

CARAVAN_PROJECT=atlas CARAVAN_BUDGETS='{"atlas": 5000}' CARAVAN_PRICES='{"h100": 2.5, ...}'
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from caravan.errors import BudgetError
from caravan.operations.costs import (
    CPU,
    PROJECT_TAG,
    StageCost,
    project_tag,
    run_costs,
    total,
)
from caravan.planning.estimate import plan_recipe
from caravan.planning.plan import Plan
from caravan.recipe import Recipe
from caravan.registry import Registry, RunRow
from caravan.settings import Settings
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.run_data import stored_recipe


def project_tags(tags: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """`tags`, and that of the project that is set.

    Raises:
        BudgetError: `tags` name a project.
    """
    refuse_projects(tags)
    if not settings.project:
        return tags
    return tuple(dict.fromkeys((*tags, project_tag(settings.project))))


def refuse_projects(tags: Iterable[str]) -> None:
    """A run that could change its project would not count in the budget that it was launched in.

    Raises:
        BudgetError: one of the tags names a project.
    """
    for tag in tags:
        if tag.startswith(PROJECT_TAG):
            raise BudgetError(
                f"tag {tag!r}: no tag can be given that begins with {PROJECT_TAG!r}; "
                "CARAVAN_PROJECT names the project of a run when it is launched"
            )


def planned_cost(plan: Plan, settings: Settings) -> float:
    """Money that a plan takes.

    Raises:
        SettingsError: a price is missing.
    """
    from caravan.operations.costs import money

    costs = [
        StageCost(
            stage.node, stage.stage, "" if stage.device == CPU else stage.device,
            stage.gpu_hours, stage.core_hours,
            money(stage.device_hours, stage.device, settings.prices),
        )
        for stage in plan.stages
    ]  # fmt: skip
    return total(costs)


def check_budget(recipe: Recipe, recipe_dir: Path, settings: Settings, registry: Registry) -> None:
    """Let a launch pass that its project can pay.

    Runs that are not finished count with what they are planned to cost, or have cost if that is
    more. Without a project, or a budget of it, everything passes.

    Raises:
        BudgetError: it cannot; says what is spent, promised and wanted.
        SettingsError: a price is missing.
    """
    budget = settings.budgets.get(settings.project) if settings.project else None
    if budget is None:
        return
    spent = promised = 0.0
    for run in registry.list_runs(limit=None, tag=project_tag(settings.project)):
        paid = total(run_costs(run, registry, settings.prices))
        spent += paid
        if not run.state.finished:
            promised += max(0.0, _planned(run, settings) - paid)
    wanted = planned_cost(plan_recipe(recipe, stage_graph(recipe), recipe_dir), settings)
    if spent + promised + wanted > budget:
        unit = settings.currency
        raise BudgetError(
            f"project {settings.project}: this run is planned to cost {wanted:,.2f} {unit}, and of "
            f"the budget of {budget:,.2f} {unit} there are {spent:,.2f} spent and {promised:,.2f} "
            "promised to runs that are not finished; make the recipe smaller (`caravan plan`), "
            "or ask for a larger budget (CARAVAN_BUDGETS)"
        )


def _planned(run: RunRow, settings: Settings) -> float:
    recipe = stored_recipe(run)
    return planned_cost(plan_recipe(recipe, stage_graph(recipe), Path(run.recipe_dir)), settings)
