"""Reinforcement learning with verifiable rewards (Lambert et al. 2024, section 6), with the scores
of a reward model, or with both.

Inputs: `policy` (the DPO model, also the reference), `dataset` (rows with a verifier are used, or
all, their prompts without the answers), `reward_model` (PPO's value model starts from it, or from
the policy where there is none; with a `reward_model_multiplier` it scores completions). Outputs:
`model`, or the policies along the way that it is yet to be selected from (`step-100`, ...); and
`rollouts`, a sample of what the policy wrote (rows of `RolloutGroup`).

A step samples completions of a batch of prompts, rewards them, and updates the policy. Prompts
are reshuffled each pass. A stopped run goes on from its last checkpoint through the same steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from caravan.recipe.verifiers import verifier_files
from caravan.stages.configs import RLVRStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.ranks.launch import on_ranks

NAME = "rlvr"
VERSION = 1


def external_files(config: RLVRStageConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of the recipe's own verifiers, on which rewards depend."""
    return verifier_files(config.verifiers, recipe_dir)


def run(config: RLVRStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    return on_ranks(train, config, inputs, context)


def train(
    config: RLVRStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    """On every rank."""
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.stages.passes import with_pass_tokens
    from caravan.training.rl.session import train_rlvr
    from caravan.verifiers import VERIFIERS, own_verifiers

    config = with_pass_tokens(
        config, inputs["policy"], config.max_length, reward_model=inputs.get("reward_model")
    )
    with own_verifiers(config.verifiers, context.recipe_dir) as own:
        result = train_rlvr(config, inputs, context, VERIFIERS | own)
    return replace(result, metrics={"tokens_per_pass": config.pass_tokens, **result.metrics})
