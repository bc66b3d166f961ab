"""RLVR of adapters, whose policy without them is the reference."""

import pytest
from transformers import AutoModelForCausalLM

from caravan.stages import rlvr
from caravan.training import models

from .small_run import GRPO, LORA, config


def test_adapters_leave_a_plain_policy_and_are_held_against_it_as_it_was(inputs, context):
    adapted, whole = context("adapted"), context("whole")
    settings = config(GRPO, max_steps=3, lora=LORA, num_epochs=2, keep_every=2)
    rlvr.run(settings, inputs, adapted)
    rlvr.run(config(GRPO, max_steps=1), inputs, whole)
    before = AutoModelForCausalLM.from_pretrained(inputs["policy"]).state_dict()
    found = [
        AutoModelForCausalLM.from_pretrained(adapted.root / "out" / name).state_dict()
        for name in ("step-2", "step-3")
    ]
    for weights in found:
        assert weights.keys() == before.keys()
    changed = [{n for n in before if not before[n].equal(weights[n])} for weights in found]
    assert changed[0] == changed[1] == {n for n in before if "_proj" in n}
    assert not found[0]["model.layers.0.mlp.up_proj.weight"].equal(
        found[1]["model.layers.0.mlp.up_proj.weight"]
    )
    # What the first step samples, and how it is scored, is what it is without adapters.
    for name in ("reward", "entropy", "kl", "completions/mean_length"):
        expected = pytest.approx(whole.logged[1][name], rel=1e-5, abs=1e-6)
        assert adapted.logged[1][name] == expected
    assert adapted.logged[3]["kl"] > 1e-4


def test_adapters_learn(inputs, context, tmp_path):
    policy, tokenizer = models.load_policy(inputs["policy"])
    # The head, which adapters leave as it is, of a random model is too weak to be sure of a token.
    policy.get_input_embeddings().weight.data *= 8
    models.save_model(policy, tokenizer, tmp_path / "policy")
    there = context("run")
    settings = config(GRPO, max_steps=30, prompts_per_step=12, lora=LORA, learning_rate=1e-2)
    rlvr.run(settings, {**inputs, "policy": tmp_path / "policy"}, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
