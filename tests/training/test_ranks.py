"""Training in two processes: real ranks over gloo, against the same stage in one process."""

from __future__ import annotations

import pytest
import torch

from caravan.recipe import DPOConfig, Resources, RewardModelConfig, SFTConfig
from caravan.stages import dpo, reward_model, sft
from caravan.training.models import load_policy, load_reward_model
from tiny import Context

COMMON = {
    "learning_rate": 1e-2,
    "max_length": 64,
    "tokens_per_pass": 128,
    "max_steps": 4,
    "save_steps": 2,
    "weight_decay": 0.1,
    "bf16": False,
    "resources": Resources(cpus=1),
}
STAGES = {
    "sft": (sft, SFTConfig(sequences_per_step=5, **COMMON)),
    "dpo": (dpo, DPOConfig(pairs_per_step=5, **COMMON)),
    "reward_model": (reward_model, RewardModelConfig(pairs_per_step=5, **COMMON)),
}
TWO = {"resources": Resources(cpus=2, processes=2)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sft", {"zero_stage": 0}),
        ("sft", {"zero_stage": 2}),
        ("sft", {"zero_stage": 3, "zero_offload": "optimizer", "loss_reduction": "sum"}),
        ("dpo", {"zero_stage": 3}),
        ("dpo", {"zero_stage": 2}),
        ("reward_model", {"zero_stage": 3, "gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_two_ranks_take_the_steps_of_one_process(name, options, inputs, tmp_path):
    stage, config = STAGES[name]
    config = config.derive(**options)
    alone, together = Context(tmp_path / "alone"), Context(tmp_path / "together")
    expected = stage.run(config, inputs, alone).metrics
    metrics = stage.run(config.derive(**TWO), inputs, together).metrics

    assert set(together.logged) == {1, 2, 3, 4}
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for step, values in alone.logged.items():
        for key in ("loss", "grad_norm", "learning_rate", "num_tokens"):
            assert together.logged[step][key] == pytest.approx(values[key], rel=2e-5), (step, key)
    load = load_reward_model if name == "reward_model" else load_policy
    ours, theirs = (
        load(c.directory / "out" / "model").model.state_dict() for c in (together, alone)
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-5)
