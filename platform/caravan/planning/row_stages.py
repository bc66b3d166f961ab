"""What the stages that ask no model and train none take: they go through rows, or copy a model."""

from __future__ import annotations

from caravan.planning.devices import Placement
from caravan.planning.plan import StagePlan
from caravan.planning.planned import Node, PlannedRecipe
from caravan.recipe import CurateConfig

ROW_SECONDS = {
    "curate": 1.1e-4, "synthesize": 2e-4, "decontaminate": 9e-5, "mix": 2e-5,
    "sample_prompts": 2e-5, "respond": 2e-5, "judge": 1.5e-4, "pair": 5e-5, "read_pairs": 2e-4,
    "report": 5e-4,
}  # fmt: skip
"""Of one row in stages that ask no model, on one core; measured with the pocket recipe."""
NEAR_DUPLICATE_SECONDS = 1.5e-3
"""Of one row more, where near duplicates are searched."""
FREE_GIB = 0.1
"""Working memory of stages that ask no model."""


def rows_stage(
    planned: PlannedRecipe, node: Node, placement: Placement, rows: float | None = None
) -> StagePlan:
    """A stage that goes through rows and asks no model."""
    if rows is None:
        rows = _row_count(planned, node.stage)
    each = ROW_SECONDS.get(node.stage, 1e-4)
    if isinstance(node.config, CurateConfig) and node.config.near_duplicate_threshold is not None:
        each += NEAR_DUPLICATE_SECONDS
    return StagePlan(
        node.name, node.stage, placement.device.name, placement.count, rows, 0.0, 0.0,
        0.2 + rows * each, FREE_GIB, placement.memory_gib,
    )  # fmt: skip


def _row_count(planned: PlannedRecipe, stage: str) -> float:
    flow = planned.flow
    counts = {
        "curate": sum(flow.sources[s.name].rows for s in planned.recipe.sources),
        "decontaminate": flow.curated_rows,
        "mix": flow.curated_rows,
        "sample_prompts": flow.curated_rows,
        "pair": flow.prompts.rows,
        "read_pairs": flow.prompts.rows,
        "report": sum(flow.instances.values()),
    }
    return counts.get(stage, 0.0)


def import_stage(planned: PlannedRecipe, node: Node, placement: Placement) -> StagePlan:
    shape = planned.shape
    return StagePlan(
        node.name, node.stage, placement.device.name, placement.count, 0.0, 0.0, 0.0,
        1.0 + 4 * shape.parameters / 1e9, FREE_GIB, placement.memory_gib,
    )  # fmt: skip
