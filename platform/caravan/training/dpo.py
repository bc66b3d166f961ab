"""Preference optimisation with cached log-probabilities of the reference policy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.recipe import DPOConfig
from caravan.training.batching import plan_steps
from caravan.training.divergence import Divergence
from caravan.training.fit import Job
from caravan.training.lanes import lanes_on
from caravan.training.logprobs import sum_rows, token_logprobs
from caravan.training.loop import PassLoss
from caravan.training.losses.preference import PairLogProbs, PreferenceLoss
from caravan.training.optim import updater_for
from caravan.training.pairs import PairBatch, pair_passes
from caravan.training.tokenize import PairRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DPOObjective:
    loss: PreferenceLoss
    mean = True

    def units(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.row_ids)

    def __call__(self, model: PreTrainedModel, batch: PairBatch) -> PassLoss:
        sides = batch.sides
        logprobs = token_logprobs(model, sides.input_ids, sides.loss_mask, sides.layout)
        chosen, rejected = sum_rows(logprobs, sides.loss_mask).chunk(2)
        half = len(batch.reference) // 2  # 0 where the loss needs no reference
        reference_chosen, reference_rejected = torch.split(batch.reference, [half, half])
        chosen_tokens, rejected_tokens = sides.loss_mask.sum(dim=1).chunk(2)
        pairs = PairLogProbs(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_tokens,
            rejected_tokens,
            batch.divergence,
        )
        result = self.loss(pairs)
        margins = result.chosen_rewards - result.rejected_rewards
        sums = {
            "rewards/chosen": result.chosen_rewards,
            "rewards/rejected": result.rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
            **result.others,
        }
        return PassLoss(
            result.losses.sum(), {name: float(value.sum()) for name, value in sums.items()}
        )


def dpo_job(
    model: PreTrainedModel,
    rows: Sequence[PairRow],
    reference: Tensor,
    config: DPOConfig,
    *,
    pad_token_id: int,
    seed: int,
) -> Job[PairBatch]:
    """`reference` is what `reference_logprobs` gives for `rows`; `NO_REFERENCE` where
    `config.loss` needs none."""
    for doubt in config.loss.doubts():
        logger.warning("dpo.%s", doubt)
    sampler = plan_steps(
        len(rows),
        config.pairs_per_step,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        seed=seed,
        validation_share=config.validation_share,
    )
    lanes = lanes_on(model.device, config.resources.cpus)
    passes = partial(pair_passes, rows, reference, config.pass_tokens, pad_token_id, lanes=lanes)
    add_estimate = None
    if config.loss.needs_divergence:
        divergence = Divergence(model, rows, config, pad_token_id=pad_token_id)
        add_estimate = partial(_add_divergence, divergence)
    return Job(
        model=model,
        updater=updater_for(model, config, sampler.steps),
        objective=DPOObjective(config.loss),
        sampler=sampler,
        rows=rows,
        passes=passes,
        add_estimate=add_estimate,
        lanes=lanes,
    )


def _add_divergence(
    divergence: Divergence, passes: list[PairBatch], taken: Sequence[int]
) -> list[PairBatch]:
    """The passes of a step, each knowing the divergence of the whole step."""
    now = divergence(taken)
    return [replace(batch, divergence=now) for batch in passes]
