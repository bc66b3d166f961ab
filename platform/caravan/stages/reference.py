"""Log-probabilities of the pairs under the policy that preference optimisation starts from.

Inputs: `model` and `pairs`, as in the stage `dpo`.

Output: `logprobs`, a safetensors file with one tensor, [pairs, 2] float32: chosen and rejected, in
nats, summed over the tokens of the completion. Neither the loss nor its beta nor the learning rate
is in this stage's config, so runs that differ in them alone share its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.records import Pair
from caravan.stages.configs import ReferenceStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.ranks.launch import on_ranks

NAME = "reference"
VERSION = 1


def run(
    config: ReferenceStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    return on_ranks(measure, config, inputs, context)


def measure(
    config: ReferenceStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    """On every rank."""
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.stages.passes import reference_pass_tokens
    from caravan.training.frozen import freeze
    from caravan.training.models import load_policy, place, prepare_torch
    from caravan.training.pairs import longest_pair
    from caravan.training.parallel.ranks import current, reads_weights
    from caravan.training.reference import reference_logprobs, save_reference
    from caravan.training.tokenize import check_length, tokenize_pairs

    device = prepare_torch(config.resources.cpus, context.seed)
    weights = reads_weights(config.zero_stage)
    model, tokenizer = load_policy(inputs["model"], weights=weights)
    check_length(model, config.max_length)
    data = tokenize_pairs(read_rows(inputs["pairs"], Pair), tokenizer, config.max_length)
    tokens = reference_pass_tokens(config, inputs["model"], longest_pair(data.rows))
    placed = place(model, device, gradient_checkpointing=False, zero_stage=config.zero_stage)
    logprobs = reference_logprobs(
        freeze(placed, zero_stage=config.zero_stage, zero_offload=config.zero_offload),
        data.rows,
        tokens_per_pass=tokens,
        bf16=config.bf16,
        pad_token_id=tokenizer.pad_token_id,
        progress=context.progress,
    )
    if current().leads:
        save_reference(context.output("logprobs", "logprobs"), data.rows, logprobs)
    chosen, rejected = logprobs.mean(dim=0).tolist()
    return StageResult({**data.counts, "logps/chosen": chosen, "logps/rejected": rejected})
