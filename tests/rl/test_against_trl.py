"""A step of GRPO against TRL's own trainer, on the same completions and rewards."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer

from caravan.inference.sampler import TokenSequence
from caravan.recipe import GRPOConfig, RLVRConfig, Sampling
from caravan.training.dropout import without_dropout
from caravan.training.frozen import Frozen
from caravan.training.models import load_policy
from caravan.training.rl import trainer as rl
from caravan.training.rl.learner import RLModels
from caravan.training.rl.rollout import Outcome, RLPrompt, Rollout, RolloutBatch
from caravan.training.rl.samplers import ModelSampler

from .conftest import row

GROUP, LONGEST = 4, 12
RATE = 1e-3
PROMPTS = ["say a digit", "a?", "count to 9."]


def completions(tokenizer):
    """Of unequal lengths; the first of each group has no end."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(len(PROMPTS) * GROUP):
        words = LONGEST if i % GROUP == 0 else int(torch.randint(LONGEST, (), generator=generator))
        ids = torch.randint(3, len(tokenizer), (words,), generator=generator).tolist()
        found.append(ids if words == LONGEST else [*ids, tokenizer.eos_token_id])
    return found


def rewards(number):
    return [0.1 * (i * i % 7) for i in range(number)]


def moved(policy_dir):
    """A policy that has left its reference, the reference, and their tokeniser."""
    model, tokenizer = load_policy(policy_dir)
    without_dropout(model)
    reference = Frozen(copy.deepcopy(model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model, reference, tokenizer


def caravans_step(policy_dir, beta, monkeypatch, updates=1, **algorithm):
    """The metrics of one step of several updates, and the policy after it."""
    model, reference, tokenizer = moved(policy_dir)
    prompts = [RLPrompt(row(i), tuple(tokenizer(text).input_ids)) for i, text in enumerate(PROMPTS)]
    replies = completions(tokenizer)
    rollouts = [
        Rollout(
            prompts[i // GROUP],
            TokenSequence(
                tuple(ids),
                (0.0,) * len(ids),
                "stop" if ids[-1] == tokenizer.eos_token_id else "length",
            ),
            "",
            Outcome.VERIFIED,
            reward,
        )
        for i, (ids, reward) in enumerate(zip(replies, rewards(len(replies)), strict=True))
    ]
    monkeypatch.setattr(rl, "collect", lambda *_, **__: RolloutBatch(tuple(rollouts), GROUP))
    config = RLVRConfig(
        algorithm=GRPOConfig(num_generations=GROUP, scale_rewards=False, **algorithm),
        beta=beta,
        max_steps=1,
        num_epochs=updates,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_epsilon=1e-8,
        prompts_per_step=len(PROMPTS),
        tokens_per_pass=64,  # several passes
        sampling=Sampling(max_completion_length=LONGEST),
        bf16=False,
    )
    models = RLModels(
        model.eval(),
        tokenizer,
        ModelSampler(model, tokenizer),
        reference if beta else None,
        None,
    )
    trainer = rl.RLTrainer(models, config, {}, 0, torch.device("cpu"))
    return trainer.step(0, prompts).metrics, model


class GivenCompletions(GRPOTrainer):
    def _generate_single_turn(self, *_, **__):
        return completions(self.processing_class), None


def trls_steps(policy_dir, beta, tmp_path, updates=1, **options):
    """What it logs of each update, and the policy after them."""
    model, reference, tokenizer = moved(policy_dir)
    trainer = GivenCompletions(
        model=model,
        reward_funcs=lambda completions, **_: rewards(len(completions)),
        args=TRLConfig(
            output_dir=str(tmp_path), beta=beta, use_bias_correction_kl=False,
            scale_rewards="none", num_generations=GROUP, max_completion_length=LONGEST,
            num_iterations=updates, max_steps=updates, learning_rate=RATE,
            lr_scheduler_type="constant", per_device_train_batch_size=len(PROMPTS) * GROUP,
            gradient_accumulation_steps=1, shuffle_dataset=False, logging_steps=1,
            report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False, dataloader_pin_memory=False,
            **{"loss_type": "dapo"} | options,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )  # fmt: skip
    if beta:
        trainer.ref_model.load_state_dict(reference.model.state_dict())
    trainer.train()
    return trainer.state.log_history[:updates], trainer.model


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_first_step_is_that_of_trl(policy_dir, tmp_path, monkeypatch, beta):
    ours, _ = caravans_step(policy_dir, beta, monkeypatch)
    (theirs,), _ = trls_steps(policy_dir, beta, tmp_path)

    names = {"loss/policy": "loss", "grad_norm": "grad_norm", "entropy": "entropy"}
    if beta:
        names["kl"] = "kl"
        assert ours["kl"] > 0.01
    for our_name, their_name in names.items():
        assert ours[our_name] == pytest.approx(theirs[their_name], rel=1e-5), our_name


@pytest.mark.parametrize(
    "algorithm",
    [
        {"epsilon": 0.02},
        {"epsilon": 0.02, "epsilon_high": 0.06},
        {"loss_type": "grpo", "epsilon": 0.02},
        {"loss_type": "dr_grpo", "epsilon": 0.02},
        {"loss_type": "cispo", "epsilon_high": 1.02},
        {"importance_sampling_level": "sequence", "epsilon": 3e-3, "epsilon_high": 4e-3},
        {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-3},
        {"importance_sampling_level": "sequence", "loss_type": "cispo", "epsilon_high": 1.01},
        {"mask_truncated_completions": True, "epsilon": 0.02},
    ],
    ids=lambda algorithm: "-".join(map(str, algorithm.values())),
)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_two_updates_on_one_batch_are_those_of_trl(
    policy_dir, tmp_path, monkeypatch, algorithm, beta
):
    ours, policy = caravans_step(policy_dir, beta, monkeypatch, updates=2, **algorithm)
    (first, second), trained = trls_steps(policy_dir, beta, tmp_path, updates=2, **algorithm)

    assert ours["loss/policy"] == pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    assert ours["clip_ratio"] > 0
    for (name, found), theirs in zip(policy.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=RATE / 100, msg=name)
