import math

import pytest

from caravan.recipe import DPOConfig, PretrainedBase, RewardModelConfig, SFTConfig
from caravan.training.dry_run import _conversations, _pairs, two_steps

CONFIGS = {
    "base": PretrainedBase(),
    "sft": SFTConfig(),
    "dpo": DPOConfig(),
    "reward_model": RewardModelConfig(gradient_checkpointing=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_two_steps_of_each_stage(kind):
    metrics = two_steps(kind, CONFIGS[kind])
    assert [m.step for m in metrics] == [1, 2]
    assert all(math.isfinite(value) for m in metrics for value in m.values.values())


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_steps_of_a_stage_that_selects_its_policy(kind):
    """Every so many steps as two steps do not reach."""
    select = {"every": 100, "tasks": ["math"]}
    assert len(two_steps(kind, CONFIGS[kind].derive(select=select))) == 2


def longer(text):
    return f"{text} " + "and then, over the hill, another cart, " * 60


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward_model"])
@pytest.mark.parametrize("max_length", [64, 8192])
def test_rows_of_the_recipe_are_used_whatever_their_length(kind, max_length):
    """With the tokenizer of the recipe they may be shorter: what is cut there is told elsewhere."""
    if kind == "sft":
        rows = [
            row.model_copy(
                update={"messages": [m.model_copy(update={"content": longer(m.content)})
                                     for m in row.messages]}
            )
            for row in _conversations()
        ]  # fmt: skip
    else:
        rows = [pair.model_copy(update={"chosen": longer(pair.chosen)}) for pair in _pairs()]
    config = CONFIGS[kind].derive(max_length=max_length)
    losses = [[m.values["loss"] for m in two_steps(kind, config, given)] for given in (rows, None)]
    assert losses[0] != losses[1]
