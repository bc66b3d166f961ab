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
from caravan.training.rl.rollout import Outcome, RLPrompt, Rollout, RolloutBatch
from caravan.training.rl.samplers import ModelSampler

from .conftest import row

GROUP, LONGEST = 4, 12
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


def caravans_step(policy_dir, beta, monkeypatch):
    model, reference, tokenizer = moved(policy_dir)
    prompts = [RLPrompt(row(i), tuple(tokenizer(text).input_ids)) for i, text in enumerate(PROMPTS)]
    replies = completions(tokenizer)
    rollouts = [
        Rollout(
            prompts[i // GROUP],
            TokenSequence(tuple(ids), (0.0,) * len(ids), "stop"),
            "",
            Outcome.VERIFIED,
            reward,
        )
        for i, (ids, reward) in enumerate(zip(replies, rewards(len(replies)), strict=True))
    ]
    monkeypatch.setattr(rl, "collect", lambda *_, **__: RolloutBatch(tuple(rollouts), GROUP))
    config = RLVRConfig(
        algorithm=GRPOConfig(num_generations=GROUP, scale_rewards=False),
        beta=beta,
        max_steps=1,
        prompts_per_step=len(PROMPTS),
        tokens_per_pass=64,  # several passes
        sampling=Sampling(max_completion_length=LONGEST),
        bf16=False,
    )
    models = rl.RLModels(
        model.eval(),
        tokenizer,
        ModelSampler(model, tokenizer),
        reference if beta else None,
        None,
    )
    trainer = rl.RLTrainer(models, config, {}, 0, torch.device("cpu"))
    return trainer.step(0, prompts).metrics


class GivenCompletions(GRPOTrainer):
    def _generate_single_turn(self, *_, **__):
        return completions(self.processing_class), None


def trls_step(policy_dir, beta, tmp_path):
    model, reference, tokenizer = moved(policy_dir)
    trainer = GivenCompletions(
        model=model,
        reward_funcs=lambda completions, **_: rewards(len(completions)),
        args=TRLConfig(
            output_dir=str(tmp_path), beta=beta, use_bias_correction_kl=False, loss_type="dapo",
            scale_rewards="none", num_generations=GROUP, max_completion_length=LONGEST,
            max_steps=1, per_device_train_batch_size=len(PROMPTS) * GROUP,
            gradient_accumulation_steps=1, shuffle_dataset=False, logging_steps=1,
            report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False, dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )  # fmt: skip
    if beta:
        trainer.ref_model.load_state_dict(reference.model.state_dict())
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_first_step_is_that_of_trl(policy_dir, tmp_path, monkeypatch, beta):
    ours = caravans_step(policy_dir, beta, monkeypatch)
    theirs = trls_step(policy_dir, beta, tmp_path)

    names = {"loss/policy": "loss", "grad_norm": "grad_norm", "entropy": "entropy"}
    if beta:
        names["kl"] = "kl"
        assert ours["kl"] > 0.01
    for our_name, their_name in names.items():
        assert ours[our_name] == pytest.approx(theirs[their_name], rel=1e-5), our_name
