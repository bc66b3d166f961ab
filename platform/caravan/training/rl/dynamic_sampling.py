"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): a group whose rewards agree teaches
nothing, so other prompts are sampled beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from caravan.training.rl.advantages import informative_groups
from caravan.training.rl.rollout import RLPrompt, RolloutBatch
from caravan.training.seeds import derived_seed

Collect = Callable[[Sequence[RLPrompt], int], RolloutBatch]
"""Samples and rewards completions of the prompts, drawn with the seed."""


def sample_in_rounds(
    collect: Collect,
    prompts: Sequence[RLPrompt],
    spare: Sequence[RLPrompt],
    *,
    max_rounds: int,
    seed: int,
) -> RolloutBatch:
    """Rollouts of `prompts` in the first round, and after that of as many of `spare`, in their
    order, as should give as many groups with different rewards as there are `prompts`."""
    rollouts = collect(prompts, seed)
    for number in range(1, max_rounds):
        informative = informative_groups(*rollouts.by_group)
        found = int(informative.sum())
        missing = len(prompts) - found
        if missing <= 0 or not spare:
            break
        wanted = math.ceil(missing * len(informative) / found) if found else len(prompts)
        taken = spare[: min(wanted, len(prompts))]
        spare = spare[len(taken) :]
        more = collect(taken, derived_seed(seed, "round", number))
        rollouts = RolloutBatch(rollouts.rollouts + more.rollouts, rollouts.num_generations)
    return rollouts
