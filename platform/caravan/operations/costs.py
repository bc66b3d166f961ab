"""What runs have used and what it cost, from the registry and the table of prices.

    CARAVAN_PRICES='{"h100": 2.50, "cpu": 0.04}'    # one GPU-hour; one core-hour

A stage run costs its devices for as long as its attempts took. A reused stage costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caravan.errors import SettingsError
from caravan.planning.devices import gpu_name
from caravan.recipe import Resources
from caravan.registry import Registry, RunRow, StageRunRow

SECTIONS = {
    "base": "base_model", "read_pairs": "pair", "reference": "dpo", "select": "evaluate",
}  # fmt: skip
"""Of the recipe, for stages that are not called as theirs."""
PROJECT_TAG = "project:"
ANY_GPU = "gpu"
"""Name in the price table of GPUs whose recipe names no type."""
CPU = "cpu"


@dataclass(frozen=True)
class StageCost:
    node: str
    stage: str
    gpu_type: str
    """Empty where the stage has no GPU."""
    gpu_hours: float
    core_hours: float
    money: float | None
    """None where the table lacks a price that it takes."""


def project_tag(project: str) -> str:
    return f"{PROJECT_TAG}{project}"


def project_of(run: RunRow) -> str:
    """The project that a run is tagged with; empty for none."""
    found = (tag.removeprefix(PROJECT_TAG) for tag in run.tags if tag.startswith(PROJECT_TAG))
    return next(found, "")


def resources_of(recipe: Mapping[str, Any], stage: StageRunRow) -> Resources:
    """What a stage run was given, as recorded; where it was not, by its run's recipe."""
    if stage.resources:
        return Resources.model_validate(stage.resources)
    section = recipe.get(SECTIONS.get(stage.stage, stage.stage)) or {}
    if stage.stage == "respond":
        name = stage.node.removeprefix("respond-")
        member: Mapping[str, Any] = {}
        member = next((m for m in section.get("pool", ()) if m["name"] == name), member)
        section = member if member.get("resources") else section
    return Resources.model_validate(section.get("resources") or {})


def money(hours: float, device: str, prices: Mapping[str, float]) -> float | None:
    """Of so many hours of a device; None where its price is not known."""
    if hours == 0:
        return 0.0
    price = prices.get(device, prices.get(ANY_GPU) if device != CPU else None)
    return None if price is None else hours * price


def stage_cost(
    recipe: Mapping[str, Any], stage: StageRunRow, prices: Mapping[str, float]
) -> StageCost:
    """GPUs are priced with all that is around them: a stage on GPUs pays for no cores."""
    resources = resources_of(recipe, stage)
    hours = stage.total_seconds / 3600 * resources.nodes
    gpu_hours = hours * resources.gpus
    core_hours = 0.0 if resources.gpus else hours * resources.cpus
    device = gpu_name(resources.gpu_type or ANY_GPU) if resources.gpus else CPU
    paid = money(gpu_hours or core_hours, device, prices)
    return StageCost(
        stage.node, stage.stage, device if resources.gpus else "", gpu_hours, core_hours, paid
    )


def run_costs(run: RunRow, registry: Registry, prices: Mapping[str, float]) -> list[StageCost]:
    return [stage_cost(run.recipe, stage, prices) for stage in registry.stage_runs(run.id)]


def total(costs: Iterable[StageCost]) -> float:
    """Money of the stages.

    Raises:
        SettingsError: a price is missing; says which.
    """
    paid = 0.0
    for cost in costs:
        if cost.money is None:
            device = cost.gpu_type or CPU
            raise SettingsError(
                f"CARAVAN_PRICES has no price for {device!r}, which {cost.node} runs on; add it: "
                f'{{"{device}": ...}}'
            )
        paid += cost.money
    return paid


def spent(project: str, registry: Registry, prices: Mapping[str, float]) -> dict[str, float]:
    """Money of each run of a project."""
    runs = registry.list_runs(limit=None, tag=project_tag(project))
    return {run.id: total(run_costs(run, registry, prices)) for run in runs}
