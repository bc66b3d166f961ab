"""Reward models: a policy whose output head is one number, trained on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from caravan.recipe import RewardModelConfig
from caravan.training.batching import plan_steps
from caravan.training.fit import Job
from caravan.training.lanes import lanes_on
from caravan.training.loop import PassLoss
from caravan.training.losses.reward import bradley_terry_loss
from caravan.training.optim import updater_for
from caravan.training.pairs import PairBatch, pair_passes
from caravan.training.rewards import end_token_rewards
from caravan.training.tokenize import PairRow


@dataclass(frozen=True)
class RewardObjective:
    centering: float = 0.0
    rating_margin: float = 0.0
    mean = True

    def units(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.row_ids)

    def __call__(self, model: PreTrainedModel, batch: PairBatch) -> PassLoss:
        rewards = end_token_rewards(
            model, batch.sides.input_ids, batch.sides.lengths, batch.sides.layout
        )
        chosen, rejected = rewards.chunk(2)
        margins = (chosen - rejected).detach()
        sums = {
            "accuracy": (margins > 0).float(),
            "margin": margins,
            "rewards/chosen": chosen.detach(),
            "rewards/rejected": rejected.detach(),
        }
        asked = self.rating_margin * batch.margins
        losses = bradley_terry_loss(chosen, rejected, asked, centering=self.centering)
        return PassLoss(losses.sum(), {name: float(value.sum()) for name, value in sums.items()})


def reward_model_job(
    model: PreTrainedModel,
    rows: Sequence[PairRow],
    config: RewardModelConfig,
    *,
    pad_token_id: int,
    seed: int,
) -> Job[PairBatch]:
    """`model` is what `models.new_reward_model` gives."""
    sampler = plan_steps(
        len(rows),
        config.pairs_per_step,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        seed=seed,
        validation_share=config.validation_share,
    )
    lanes = lanes_on(model.device, config.resources.cpus)
    return Job(
        model=model,
        updater=updater_for(model, config, sampler.steps),
        objective=RewardObjective(config.center_rewards_coefficient, config.rating_margin),
        sampler=sampler,
        rows=rows,
        passes=partial(
            pair_passes,
            rows,
            torch.empty(0),
            config.pass_tokens,
            pad_token_id,
            lanes=lanes,
        ),
        lanes=lanes,
    )
