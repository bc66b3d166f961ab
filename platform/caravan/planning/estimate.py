"""What each stage of a recipe takes: memory, seconds, device-hours. Nothing is run.

    plan = plan_recipe(recipe, stage_graph(recipe), recipe_dir)

The assumptions are in `devices`, `flow` and the modules of the stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from caravan.planning import asking_stages, train_stages
from caravan.planning.devices import gpu_named, place
from caravan.planning.plan import Plan, StagePlan
from caravan.planning.planned import Node, PlannedRecipe
from caravan.planning.row_stages import import_stage, rows_stage
from caravan.recipe import (
    DPOConfig,
    ImportedBase,
    PretrainedBase,
    Recipe,
    RewardModelConfig,
    RLVRConfig,
    SFTConfig,
)
from caravan.stages.configs import (
    EvaluateStageConfig,
    JudgeStageConfig,
    ReferenceStageConfig,
    RespondStageConfig,
    SynthesizeStageConfig,
)


def plan_recipe(
    recipe: Recipe, nodes: Iterable[Node], recipe_dir: Path, *, gpu: str | None = None
) -> Plan:
    """Estimate every node of a recipe.

    Args:
        nodes: what `stage_graph(recipe)` gives.
        gpu: the type of GPU where `resources.gpu_type` names none.

    Raises:
        CaravanError: a model's size or a device is not known; says which.
    """
    if gpu is not None:
        gpu_named(gpu)  # also where no stage has a GPU, or each names its own
    planned = PlannedRecipe(recipe, recipe_dir)
    shape, known_by = planned.base
    stages = tuple(_stage(planned, node, gpu) for node in nodes)
    notes = (*planned.flow.notes, *planned.notes)
    return Plan(recipe.name, shape.parameters, known_by, stages, notes)


def _stage(planned: PlannedRecipe, node: Node, gpu: str | None) -> StagePlan:
    config = node.config
    placement = place(config.resources, gpu)
    match config:
        case PretrainedBase():
            return train_stages.pretrain(planned, node, placement, config)
        case ImportedBase():
            return import_stage(planned, node, placement)
        case SFTConfig():
            return train_stages.sft(planned, node, placement, config)
        case ReferenceStageConfig():
            return train_stages.reference(planned, node, placement, config)
        case DPOConfig():
            return train_stages.on_pairs(planned, node, placement, config)
        case RewardModelConfig():
            if config.model_name_or_path is not None:
                return import_stage(planned, node, placement)
            return train_stages.on_pairs(planned, node, placement, config)
        case RLVRConfig():
            return train_stages.rlvr(planned, node, placement, config)
        case RespondStageConfig():
            return asking_stages.respond(planned, node, placement, config)
        case JudgeStageConfig():
            return asking_stages.judge(planned, node, placement, config)
        case SynthesizeStageConfig():
            return asking_stages.synthesize(planned, node, placement, config)
        case EvaluateStageConfig() if node.stage == "select":
            return asking_stages.select(planned, node, placement, config)
        case EvaluateStageConfig():
            return asking_stages.evaluate(planned, node, placement, config)
    return rows_stage(planned, node, placement)
