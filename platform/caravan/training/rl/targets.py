"""What the updates of a step aim at: advantages and, with PPO, returns, from the models as they are
when the step begins.

Shapes: N completions of a step, R tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from caravan.recipe import GRPOConfig, PPOConfig
from caravan.training.parallel.ranks import current
from caravan.training.rl.advantages import (
    generalized_advantages,
    group_advantages,
    token_rewards,
    whiten,
)
from caravan.training.rl.forward import Pass, gather, scatter
from caravan.training.rl.learner import Learner, Networks
from caravan.training.rl.metrics import Sums, add, described
from caravan.training.rl.rollout import RolloutBatch


@dataclass
class Targets:
    """What the updates of a step aim at. All [N, R], 0 where not known."""

    kept: list[int]
    """Completions that are trained on."""
    advantages: Tensor
    old_logprobs: Tensor | None = None
    """None where the step is one update: the policy of the update is the policy that sampled."""
    reference: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None


class _Measured(NamedTuple):
    """The completions `kept` under the models as they were when the step began. All [N, R]."""

    logprobs: Tensor
    reference: Tensor
    values: Tensor


def ppo_targets(
    learner: Learner,
    rollouts: RolloutBatch,
    config: PPOConfig,
    sums: Sums,
    metrics: dict[str, float],
) -> Targets:
    """GAE over KL-penalised rewards, whitened over the batch."""
    kept = rollouts.counts.nonzero()[:, 0].tolist()
    old = _measure(learner, rollouts, kept, sums, policy=True)
    mask = rollouts.mask & rollouts.counts[:, None]
    rewards = token_rewards(
        rollouts.rewards, old.logprobs, old.reference, rollouts.mask, beta=learner.config.beta
    )
    advantages, returns = generalized_advantages(
        rewards * mask, old.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    known = rollouts.counts
    metrics["objective/rlhf_reward"] = float((rewards * mask).sum(1)[known].mean())
    metrics["objective/non_score_reward"] = metrics["objective/rlhf_reward"] - float(
        rollouts.rewards[known].mean()
    )
    metrics["value/mean"] = float(old.values[mask].mean())
    variance = float(returns[mask].var(correction=0))
    if variance > 0:
        residual = float((returns - old.values)[mask].var(correction=0))
        metrics["value/explained_variance"] = 1.0 - residual / variance
    return Targets(kept, whiten(advantages, mask), old.logprobs, old.reference, old.values, returns)


def grpo_targets(
    learner: Learner,
    rollouts: RolloutBatch,
    config: GRPOConfig,
    sums: Sums,
    metrics: dict[str, float],
) -> Targets:
    """Advantages within groups; groups whose rewards agree are left out."""
    groups = group_advantages(*rollouts.by_group, scale_rewards=config.scale_rewards)
    informative = groups.informative.repeat_interleave(rollouts.num_generations)
    trained = informative & rollouts.counts
    if config.mask_truncated_completions:
        trained &= rollouts.ended
    kept = trained.nonzero()[:, 0].tolist()
    metrics["frac_reward_zero_std"] = 1.0 - float(groups.informative.float().mean())
    metrics["batch/groups_skipped"] = float((~groups.informative).sum())
    several = learner.updates_per_step > 1
    old = _measure(learner, rollouts, kept, sums, policy=several)
    return Targets(
        kept,
        (groups.advantages.flatten() * trained)[:, None] * rollouts.mask,
        old.logprobs if several else None,
        old.reference,
    )


def _measure(
    learner: Learner, rollouts: RolloutBatch, kept: Sequence[int], sums: Sums, *, policy: bool
) -> _Measured:
    """Policy (if asked for), reference and value model over the completions `kept`."""
    mask, frozen = rollouts.mask, learner.models.reference
    logprobs, reference, values = (torch.zeros(mask.shape) for _ in range(3))

    @torch.no_grad()
    def measure(models: Networks, part: Pass) -> Sums:
        batch = part.batch.to(learner.device)
        if policy:
            seen = learner.policy.forward(
                partial(learner.tokens, batch=batch, entropy=True), models.policy
            )
        if frozen is not None:
            unmoved = frozen.forward(
                partial(learner.tokens, batch=batch, entropy=False), models.reference
            )
        if models.value is not None:
            assert learner.value is not None
            worth = learner.value.forward(partial(learner.values, batch=batch), models.value)
        if not part.counts:
            return Sums(float)
        if frozen is not None:
            scatter(reference, mask, part.indices, unmoved.logprobs)
        if models.value is not None:
            scatter(values, mask, part.indices, worth)
        if not policy:
            return Sums(float)
        scatter(logprobs, mask, part.indices, seen.logprobs)
        return described(
            rollouts,
            part,
            seen.logprobs.cpu(),
            seen.entropies.cpu(),
            None if frozen is None else gather(reference, mask, part.indices),
        )

    for of_pass in learner.lanes.map(measure, learner.passes_of(rollouts, kept)):
        add(sums, of_pass)
    current().add_up(logprobs, reference, values)
    if frozen is None:
        reference = logprobs
    return _Measured(logprobs, reference, values)
