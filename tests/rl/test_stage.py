"""The RLVR stage on a model of a few thousand weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from caravan.recipe import Resources, VLLMRollouts
from caravan.stages import rlvr
from caravan.stages.configs import RLVRStageConfig
from caravan.training import models
from caravan.training.rl import session

from .small_run import GRPO, PPO, config, digest


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_the_policy_learns(inputs, context, algorithm):
    there = context("run")
    settings = config(algorithm, max_steps=40, prompts_per_step=12 if algorithm is GRPO else 64)
    rlvr.run(settings, inputs, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[:5]) / 5 < 0.3
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    AutoModelForCausalLM.from_pretrained(there.root / "out" / "model")


def test_a_copy_that_is_sampled_from_has_the_weights_of_each_step(inputs, context, monkeypatch):
    from_itself, from_a_copy = context("itself"), context("copy")
    rlvr.run(config(), inputs, from_itself)
    monkeypatch.setattr(session, "_samples_from_a_copy", lambda config, device: True)
    rlvr.run(config(), inputs, from_a_copy)
    assert digest(from_a_copy) == digest(from_itself)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_the_policy_learns_on_a_gpu_that_samples_in_bf16(inputs, context):
    there = context("run")
    resources = Resources(cpus=1, gpus=1)
    settings = config(max_steps=40, prompts_per_step=12, bf16=True, resources=resources)
    rlvr.run(settings, inputs, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    assert max(metrics["mismatch/kl"] for metrics in there.logged.values()) < 0.05


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        (GRPO, {"frac_reward_zero_std", "batch/groups_skipped"}),
        (PPO, {"loss/value", "value/explained_variance", "objective/rlhf_reward"}),
    ],
)
def test_metrics_have_the_names_that_users_expect(inputs, context, algorithm, names):
    there = context("run")
    rlvr.run(config(algorithm, prompts_per_step=48), inputs, there)
    common = {
        "reward", "reward_std", "rewards/contains/mean", "verifier/contains/accuracy", "kl",
        "objective/kl", "entropy", "completions/mean_length", "completions/clipped_ratio",
        "clip_ratio", "policy/approx_kl", "policy/collapsed", "mismatch/logprob_abs_mean",
        "mismatch/kl", "loss/policy", "grad_norm", "learning_rate", "verifier/failures",
        "perf/tokens_per_second", "perf/rollout_seconds", "episodes",
    }  # fmt: skip
    assert sorted(there.logged) == [1, 2, 3, 4]
    for metrics in there.logged.values():
        assert common | names <= set(metrics)
    first = there.logged[1]
    assert first["mismatch/logprob_abs_max"] < 1e-4  # one program, float32
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the policy
    assert first["entropy"] == pytest.approx(3.8, abs=0.3)  # nearly uniform over 46 tokens
    assert there.told[-1] == (4, 4)


def test_the_cut_into_passes_changes_nothing_but_rounding(inputs, context):
    whole, cut = context("whole"), context("cut")
    rlvr.run(config(PPO, max_steps=2, prompts_per_step=24), inputs, whole)
    rlvr.run(config(PPO, max_steps=2, prompts_per_step=24, tokens_per_pass=128), inputs, cut)
    for name in ("reward", "kl", "loss/policy", "loss/value", "grad_norm", "value/grad_norm"):
        assert whole.logged[2][name] == pytest.approx(cut.logged[2][name], rel=1e-3, abs=1e-5)


def test_several_updates_move_away_from_the_policy_that_sampled(inputs, context):
    there = context("run")
    rlvr.run(config(GRPO, num_epochs=3, num_mini_batches=2, max_steps=2), inputs, there)
    assert there.logged[1]["policy/approx_kl"] > 0
    assert there.logged[1]["clip_ratio"] > 0


def test_without_a_penalty_there_is_no_reference_and_no_kl(inputs, context):
    there = context("run")
    rlvr.run(config(GRPO, beta=0.0, max_steps=1), inputs, there)
    assert "kl" not in there.logged[1]
    assert "entropy" in there.logged[1]


def test_ppo_without_a_reward_model_starts_its_value_model_from_the_policy(inputs, context):
    del inputs["reward_model"]
    there = context("run")
    rlvr.run(config(PPO, max_steps=1), inputs, there)
    assert "loss/value" in there.logged[1]


def test_reference_policy_and_value_model_get_fused_kernels_where_there_are_any(
    inputs, context, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        models, "use_fused_kernels", lambda model, _: asked.append(type(model).__name__)
    )
    rlvr.run(config(PPO, max_steps=1), inputs, context("run"))
    assert asked == ["LlamaForCausalLM", "LlamaForCausalLM", "LlamaForSequenceClassification"]


def test_keys_and_checkpoints_depend_on_what_samples_where_it_is_not_our_own_sampler():
    assert "rollouts" not in config().model_dump()
    with_vllm = config(rollouts=VLLMRollouts()).model_dump()
    assert with_vllm["rollouts"]["kind"] == "vllm"
    assert RLVRStageConfig.model_validate(with_vllm).rollouts == VLLMRollouts()
