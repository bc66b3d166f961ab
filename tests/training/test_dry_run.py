import math

import pytest

from caravan.errors import DataError
from caravan.recipe import DPOConfig, PretrainedBase, RewardModelConfig, SFTConfig
from caravan.training.dry_run import _conversations, two_steps

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


def test_rows_of_the_recipe_are_used(tokenizer):
    with pytest.raises(DataError, match="all 18 rows are longer than max_length=4"):
        two_steps("sft", SFTConfig(max_length=4), tokenizer, _conversations())
