"""A linear merge of models that the run, or others, made.

Inputs: `model-0`, `model-1`, ... Output: `model`, their weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caravan.recipe import Config, Resources
from caravan.stages.context import StageContext, StageResult

NAME = "merge"
VERSION = 1


class MergeConfig(Config):
    weights: tuple[float, ...]
    """Of each input, as they are applied."""
    resources: Resources = Resources()


def run(config: MergeConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    from caravan.training.merging import Ingredient, merge_models

    ingredients = [
        Ingredient(inputs[f"model-{i}"], weight) for i, weight in enumerate(config.weights)
    ]
    merge_models(ingredients, context.output("model", "model"))
    return StageResult({f"weight/{i}": weight for i, weight in enumerate(config.weights)})
