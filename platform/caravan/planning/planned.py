"""A recipe as the estimates of its stages see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from caravan.errors import DataError
from caravan.planning.devices import GIB
from caravan.planning.flow import Flow, flow_of
from caravan.planning.shapes import ModelShape, pretrained_shape, shape_of_model
from caravan.recipe import PolicyConfig, PretrainedBase, Recipe, Sampling
from caravan.stages.candidates import selection_of

BASE_REPLIES = 2.0
"""Length of a base model's replies, as a multiple of those of the mix."""


class Node(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def config(self) -> Any: ...


@dataclass
class PlannedRecipe:
    recipe: Recipe
    recipe_dir: Path
    notes: list[str] = field(default_factory=list)
    """What is assumed, or would go to waste; estimates add to them."""
    candidates: dict[str, int] = field(default_factory=dict)
    """Policies that training stages keep to select from, by their names; estimates add to them."""

    @cached_property
    def flow(self) -> Flow:
        return flow_of(self.recipe, self.recipe_dir)

    @cached_property
    def base(self) -> tuple[ModelShape, str]:
        """The base model's shape, and how it is known."""
        base = self.recipe.base_model
        if isinstance(base, PretrainedBase):
            return pretrained_shape(base), "the recipe"
        return shape_of_model(base.model_name_or_path, self.recipe_dir)

    @property
    def shape(self) -> ModelShape:
        return self.base[0]

    @cached_property
    def reward_model(self) -> ModelShape:
        """The reward model's shape, and of a value model that starts from it."""
        reward = self.recipe.reward_model
        if reward is None or reward.model_name_or_path is None:
            return self.shape
        try:
            return shape_of_model(reward.model_name_or_path, self.recipe_dir)[0]
        except DataError:
            self.notes.append(
                f"rlvr: nothing tells the size of the reward model {reward.model_name_or_path}, "
                "which is taken to be as large as the policy"
            )
            return self.shape

    def reply(self, sampling: Sampling, *, base: bool = False) -> float:
        """Mean tokens of a reply: as in the mix; a base model does not know when to end."""
        written = self.flow.mix.reply_tokens * (BASE_REPLIES if base else 1)
        return min(sampling.max_completion_length, written)

    def keep_candidates(self, stage: str, steps: int) -> None:
        """Note what the policies take that a stage of so many steps keeps, where its recipe selects
        from them."""
        section = getattr(self.recipe, stage, None)
        if not isinstance(section, PolicyConfig) or section.select is None:
            return
        select = section.select
        count = self.candidates[stage] = math.ceil(steps / select.every)
        gib = 4 * self.shape.parameters / GIB
        if count == 1:
            self.notes.append(
                f"{stage}.select.every {select.every:,} keeps no policy before the last of about "
                f"{steps:,} steps, so there is nothing to select from; lower it, or leave select "
                "out"
            )
            return
        where, then = f"beside {stage} while it runs", ""
        if select.tasks:
            selection = selection_of(stage)
            where = f"in the store and beside {stage} and {selection} while they run"
            then = ", and afterwards let caravan gc --candidates leave one"
        self.notes.append(
            f"{stage} keeps {count:,} policies of {gib:,.1f} GiB to select from, "
            f"{count * gib:,.0f} GiB {where}; raise {stage}.select.every, or lower "
            f"{stage}.max_steps, for fewer{then}"
        )

    def pair_count(self) -> float:
        pair = self.recipe.pair
        rows = self.flow.prompts.rows
        return min(rows, pair.max_pairs) if pair and pair.max_pairs else rows
