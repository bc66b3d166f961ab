"""A run of RLVR that is stopped goes on through the same steps."""

import shutil
from collections import Counter

import pytest
import torch

from caravan.data.io import read_rows
from caravan.data.records import RolloutGroup
from caravan.recipe import GRPOConfig
from caravan.stages import rlvr
from caravan.stages.so_far import FILE
from caravan.training.rl import session

from .small_run import GRPO, LORA, PPO, config, digest, without_speed

DAPO = GRPOConfig(num_generations=2, max_sampling_rounds=3, mask_truncated_completions=True)


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        (GRPO, {}),
        (PPO, {"num_epochs": 2, "num_mini_batches": 2, "bf16": True, "prompts_per_step": 12}),
        (GRPO, {"reward_model_multiplier": 0.5, "prompts": "all"}),
        (DAPO, {"prompts_per_step": 4, "num_epochs": 2}),
        (PPO, {"lora": LORA, "bf16": True, "prompts_per_step": 12}),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(inputs, context, algorithm, more):
    settings = config(algorithm, max_steps=5, save_steps=2, **more)
    whole, stopped = context("whole"), context("stopped", stop_after=3)
    expected = rlvr.run(settings, inputs, whole)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    assert sorted(stopped.logged) == [1, 2, 3]
    elsewhere = context("elsewhere")  # a machine that finds the checkpoints and nothing else
    shutil.copytree(stopped.workdir / "checkpoints", elsewhere.workdir / "checkpoints")
    torch.manual_seed(99)
    assert rlvr.run(settings, inputs, elsewhere) == expected
    assert without_speed(stopped.logged | elsewhere.logged) == without_speed(whole.logged)
    assert digest(elsewhere) == digest(whole)


def test_rollouts_show_while_the_stage_runs_and_none_twice_after_a_resume(
    inputs, context, monkeypatch
):
    monkeypatch.setattr(session, "STEPS_KEPT", 2)  # the first and the last
    settings = config(max_steps=6, save_steps=2)
    stopped = context("stopped", stop_after=3)

    def shown():
        return Counter(group.step for group in read_rows(stopped.workdir / FILE, RolloutGroup))

    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    assert shown() == {1: 8, 3: 8}  # the latest, too
    stopped.stop_after = None
    rlvr.run(settings, inputs, stopped)
    assert shown() == {1: 8, 6: 8}
