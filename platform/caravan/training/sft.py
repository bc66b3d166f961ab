"""Supervised fine-tuning; with everything supervised, also pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from caravan.recipe import SFTConfig
from caravan.training.batching import TokenBatch, TokenRow, collate, plan_steps, split_passes
from caravan.training.fit import Job
from caravan.training.lanes import lanes_on
from caravan.training.logprobs import before_head
from caravan.training.loop import PassLoss
from caravan.training.losses.sft import cross_entropy
from caravan.training.optim import updater_for


@dataclass(frozen=True)
class SFTObjective:
    mean: bool = True

    def units(self, batch: TokenBatch) -> int:
        """Supervised tokens."""
        return int(batch.loss_mask[:, 1:].sum())

    def __call__(self, model: PreTrainedModel, batch: TokenBatch) -> PassLoss:
        before = before_head(model, batch.input_ids, batch.loss_mask, batch.layout)
        return PassLoss(cross_entropy(*before), {})


def sft_job(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    config: SFTConfig,
    *,
    pad_token_id: int,
    seed: int,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Job[TokenBatch]:
    sampler = plan_steps(
        len(rows),
        config.sequences_per_step,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        seed=seed,
        validation_share=config.validation_share,
    )
    lanes = lanes_on(model.device, config.resources.cpus)
    return Job(
        model=model,
        updater=updater_for(model, config, sampler.steps, betas=betas),
        objective=SFTObjective(mean=config.loss_reduction == "mean"),
        sampler=sampler,
        rows=rows,
        passes=partial(token_passes, rows, config.pass_tokens, pad_token_id, lanes=lanes),
        lanes=lanes,
    )


def token_passes(
    rows: Sequence[TokenRow],
    tokens_per_pass: int,
    pad_token_id: int,
    taken: Sequence[int],
    *,
    lanes: int = 1,
) -> list[TokenBatch]:
    """The passes over `rows[i]` for `i` in `taken`."""
    step = [rows[i] for i in taken]
    cuts = split_passes([row.length for row in step], tokens_per_pass, lanes=lanes)
    return [collate([step[i] for i in cut], pad_token_id) for cut in cuts]
