"""Preference optimisation with cached log-probabilities of the reference policy.

Shapes: P pairs of a pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from caravan.recipe import DPOConfig
from caravan.training.batching import collate, plan_steps, split_passes
from caravan.training.fit import Job
from caravan.training.logprobs import sum_rows, token_logprobs
from caravan.training.loop import PassLoss
from caravan.training.losses.dpo import DPO_LOSSES, PairLogProbs
from caravan.training.optim import updater_for
from caravan.training.pairs import PairBatch, pair_passes
from caravan.training.tokenize import PairRow

logger = logging.getLogger(__name__)

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class DPOObjective:
    loss_type: str
    beta: float
    mean = True

    def units(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.row_ids)

    def __call__(self, model: PreTrainedModel, batch: PairBatch) -> PassLoss:
        sides = batch.sides
        logprobs = token_logprobs(model, sides.input_ids, sides.loss_mask)
        chosen, rejected = sum_rows(logprobs, sides.loss_mask).chunk(2)
        reference_chosen, reference_rejected = batch.reference.chunk(2)
        chosen_tokens, rejected_tokens = sides.loss_mask.sum(dim=1).chunk(2)
        pairs = PairLogProbs(
            chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens
        )
        result = DPO_LOSSES[self.loss_type](pairs, beta=self.beta)
        margins = result.chosen_rewards - result.rejected_rewards
        sums = {
            "rewards/chosen": result.chosen_rewards,
            "rewards/rejected": result.rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
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
    """`reference` is what `reference_logprobs` gives for `rows`."""
    if config.loss_type in ("sigmoid_norm", "dpo_norm") and config.beta < 1:
        logger.warning(
            "beta=%g with loss_type=%s looks like a beta of plain DPO: on log-ratios per token it "
            "is about fifty times larger (Tülu 3 uses 5)",
            config.beta,
            config.loss_type,
        )
    sampler = plan_steps(
        len(rows),
        config.pairs_per_step,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        seed=seed,
    )
    return Job(
        model=model,
        updater=updater_for(model, config, sampler.steps),
        objective=DPOObjective(config.loss_type, config.beta),
        sampler=sampler,
        passes=partial(pair_passes, rows, reference, config.tokens_per_pass, pad_token_id),
    )


def reference_logprobs(
    model: PreTrainedModel, rows: Sequence[PairRow], config: DPOConfig, *, pad_token_id: int
) -> Tensor:
    """[rows, 2] float32 log-probabilities of the chosen and the rejected completions.

    One pass over all completions, sorted by length, before the policy is trained.
    """
    sides = [side for row in rows for side in (row.chosen, row.rejected)]
    total = torch.empty(len(sides))
    device = model.device
    model.eval()
    for cut in split_passes([side.length for side in sides], config.tokens_per_pass):
        batch = collate([sides[i] for i in cut], pad_token_id).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            values = token_logprobs(model, batch.input_ids, batch.loss_mask)
        total[cut] = sum_rows(values, batch.loss_mask).cpu()
    model.train()
    return total.view(len(rows), 2)


def cached_reference(
    workdir: Path,
    key: str,
    model: PreTrainedModel,
    rows: Sequence[PairRow],
    config: DPOConfig,
    *,
    pad_token_id: int,
) -> Tensor:
    """`reference_logprobs`, kept in `workdir` so that a restarted stage does not compute it again.

    Args:
        key: what the numbers depend on: model, rows, precision.
    """
    path = workdir / REFERENCE
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return torch.as_tensor(file.get_tensor("logprobs"))
    logprobs = reference_logprobs(model, rows, config, pad_token_id=pad_token_id)
    aside = path.with_suffix(".writing")
    save_file({"logprobs": logprobs}, aside, metadata={"key": key})
    aside.replace(path)
    return logprobs
