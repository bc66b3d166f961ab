"""Supervised fine-tuning of the base model on the training mix.

Inputs: `model`, and `dataset`, conversations with at least one assistant turn:

    {"id": "pocket-gsm/17", "messages": [{"role": "user", "content": "..."},
     {"role": "assistant", "content": "..."}], "source": "pocket-gsm", "skill": "math", ...}

Output: `model`, a Hugging Face directory, or those along the way that it is yet to be selected from
(`step-100`, ...). Loss falls on all assistant turns and their end tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.records import Conversation
from caravan.stages.configs import SFTStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.ranks.launch import on_ranks

NAME = "sft"
VERSION = 2


def run(config: SFTStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    return on_ranks(train, config, inputs, context)


def train(config: SFTStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    """On every rank."""
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.stages.passes import with_pass_tokens
    from caravan.stages.trained import save_trained
    from caravan.training.adapters import load_base
    from caravan.training.candidates import Candidates
    from caravan.training.fit import fit, identity
    from caravan.training.models import place, prepare_torch
    from caravan.training.sft import sft_job
    from caravan.training.tokenize import check_length, tokenize_conversations

    device = prepare_torch(config.resources.cpus, context.seed)
    model, tokenizer = load_base(inputs["model"], config, device)
    check_length(model, config.max_length)
    model = place(
        model,
        device,
        gradient_checkpointing=config.gradient_checkpointing,
        zero_stage=config.zero_stage,
    )
    conversations = read_rows(inputs["dataset"], Conversation)
    data = tokenize_conversations(conversations, tokenizer, config.max_length)
    config = with_pass_tokens(
        config, inputs["model"], max((r.length for r in data.rows), default=0)
    )
    job = sft_job(
        model,
        data.rows,
        config,
        pad_token_id=tokenizer.pad_token_id,
        seed=context.seed,
    )
    write = partial(save_trained, model, tokenizer, config, inputs["model"])
    steps, by_loss = job.sampler.steps, config.by_loss
    candidates = Candidates(context, config.keep_every, steps, write, by_loss=by_loss)
    metrics = fit(
        job,
        context,
        identity=identity(NAME, config, context.seed, inputs["model"], data.rows),
        config=config,
        candidates=candidates,
    )
    candidates.publish()
    trained = Counter(f"source/{data.sources[row]}" for row in job.sampler.drawn())
    return StageResult({**data.counts, **trained, "tokens_per_pass": config.pass_tokens, **metrics})
