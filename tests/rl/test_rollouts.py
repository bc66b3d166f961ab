"""What is kept of the completions that RLVR trains on."""

import pytest

from caravan.data.io import read_rows
from caravan.data.records import RolloutGroup
from caravan.recipe import GRPOConfig
from caravan.stages import rlvr

from .small_run import config


def test_rollouts_are_kept_with_their_rewards_and_advantages(inputs, context):
    there = context("run")
    rlvr.run(config(max_steps=3, missing_eos_reward=-2.0), inputs, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    assert {group.step for group in groups} == {1, 2, 3}
    for group in groups:
        assert len(group.completions) == len(group.rewards) == len(group.advantages) == 8
        assert group.prompt[-1].role == "user"
        for finish, outcome, reward in zip(
            group.finish_reasons, group.outcomes, group.rewards, strict=True
        ):
            assert reward == (-2.0 if finish == "length" else float(outcome == "verified"))
        assert sum(group.advantages) == pytest.approx(0, abs=1e-4)


def test_a_truncated_completion_that_is_masked_has_no_advantage(inputs, context):
    """It is not trained on; those of its group that are have theirs against the mean of all."""
    there = context("run")
    masked = GRPOConfig(num_generations=8, mask_truncated_completions=True)
    rlvr.run(config(masked, max_steps=1, missing_eos_reward=-2.0), inputs, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    found = {
        (finish, advantage != 0)
        for group in groups
        if len(set(group.rewards)) > 1
        for finish, advantage in zip(group.finish_reasons, group.advantages, strict=True)
    }
    assert found == {("length", False), ("stop", True)}
