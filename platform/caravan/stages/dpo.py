"""Preference optimisation of the SFT policy.

Inputs: `model`, and `pairs`:

    {"id": "pocket-chat/3", "prompt": [{"role": "user", "content": "..."}], "chosen": "...",
     "rejected": "...", "chosen_model": "sft", "rejected_model": "terse", ...}

and `reference`, what the stage of that name gave for them; a loss without a reference needs none.

Output: `model`, a Hugging Face directory, or those along the way that it is yet to be selected from
(`step-100`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.records import Pair
from caravan.stages.configs import DPOStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.ranks.launch import on_ranks

NAME = "dpo"
VERSION = 1


def run(config: DPOStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    return on_ranks(train, config, inputs, context)


def train(config: DPOStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    """On every rank."""
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.stages.passes import with_pass_tokens
    from caravan.stages.trained import save_trained
    from caravan.training.adapters import load_base
    from caravan.training.candidates import Candidates
    from caravan.training.dpo import dpo_job
    from caravan.training.fit import fit, identity
    from caravan.training.models import place, prepare_torch
    from caravan.training.pairs import longest_pair
    from caravan.training.reference import NO_REFERENCE, load_reference
    from caravan.training.tokenize import check_length, tokenize_pairs

    device = prepare_torch(config.resources.cpus, context.seed)
    model, tokenizer = load_base(inputs["model"], config, device)
    check_length(model, config.max_length)
    model = place(
        model,
        device,
        gradient_checkpointing=config.gradient_checkpointing,
        zero_stage=config.zero_stage,
    )
    data = tokenize_pairs(read_rows(inputs["pairs"], Pair), tokenizer, config.max_length)
    of_run = identity(NAME, config, context.seed, inputs["model"], data.rows)
    pad = tokenizer.pad_token_id
    reference = NO_REFERENCE
    if config.loss.needs_reference:
        reference = load_reference(inputs["reference"], data.rows)
    config = with_pass_tokens(config, inputs["model"], longest_pair(data.rows))
    job = dpo_job(model, data.rows, reference, config, pad_token_id=pad, seed=context.seed)
    write = partial(save_trained, model, tokenizer, config, inputs["model"])
    steps, by_loss = job.sampler.steps, config.by_loss
    candidates = Candidates(context, config.keep_every, steps, write, by_loss=by_loss)
    metrics = fit(job, context, identity=of_run, config=config, candidates=candidates)
    candidates.publish()
    return StageResult({**data.counts, "tokens_per_pass": config.pass_tokens, **metrics})
