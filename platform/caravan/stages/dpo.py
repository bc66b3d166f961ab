"""Preference optimisation of the SFT policy.

Inputs: `model`, and `pairs`:

    {"id": "pocket-chat/3", "prompt": [{"role": "user", "content": "..."}], "chosen": "...",
     "rejected": "...", "chosen_model": "sft", "rejected_model": "terse", ...}

Output: `model`, a Hugging Face directory. The log-probabilities of the reference policy, which is
the input model, are computed once before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.records import Pair
from caravan.recipe import DPOConfig
from caravan.stages.context import StageContext, StageResult

NAME = "dpo"
VERSION = 1


def run(config: DPOConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.training.dpo import cached_reference, dpo_job
    from caravan.training.fit import fit, identity
    from caravan.training.models import load_policy, place, prepare_torch, save_model
    from caravan.training.tokenize import check_length, tokenize_pairs

    device = prepare_torch(config.resources.cpus, context.seed)
    model, tokenizer = load_policy(inputs["model"])
    check_length(model, config.max_length)
    model = place(model, device, gradient_checkpointing=config.gradient_checkpointing)
    data = tokenize_pairs(read_rows(inputs["pairs"], Pair), tokenizer, config.max_length)
    of_run = identity(NAME, config, context.seed, inputs["model"], data.rows)
    pad = tokenizer.pad_token_id
    reference = cached_reference(
        context.workdir, of_run, model, data.rows, config, pad_token_id=pad
    )
    job = dpo_job(model, data.rows, reference, config, pad_token_id=pad, seed=context.seed)
    metrics = fit(job, context, identity=of_run, bf16=config.bf16, save_steps=config.save_steps)
    save_model(model, tokenizer, context.output("model", "model"))
    return StageResult({**data.counts, **metrics})
