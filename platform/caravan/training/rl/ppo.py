"""The losses of proximal policy optimisation (arXiv:1707.06347), as Tülu 3 uses them.

All functions return sums over tokens: the caller divides by the tokens of the whole mini-batch, so
that the cut into passes does not change the loss. (open-instruct averages within each pass.)

Shapes: S tokens of all completions of a pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    loss: Tensor
    """[] sum over the tokens."""
    clipped: Tensor
    """[] detached number of tokens where the clipped term is the one that counts."""
    approx_kl: Tensor
    """[] detached sum of half the squared log-ratio: KL(old || new), to second order."""


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped objective (arXiv:1707.06347, eq. 7), negated.

    Args:
        logprobs: [S] under the policy being trained, at the sampling temperature.
        old_logprobs: [S] under the policy that sampled.
        advantages: [S].
        epsilon: The ratio counts from `1 - epsilon` ...
        epsilon_high: ... to `1 + epsilon_high` (clip-higher, DAPO, arXiv:2503.14476, eq. 10);
            None is `epsilon`.
        weights: [S] of the tokens, as `importance_weights`; None weighs all alike.
    """
    log_ratio = logprobs - old_logprobs
    losses = clipped_losses(log_ratio.exp(), advantages, epsilon=epsilon, epsilon_high=epsilon_high)
    return PolicyLoss(
        (losses.each if weights is None else weights * losses.each).sum(),
        losses.clipped.sum(),
        squared(log_ratio),
    )


class TokenLosses(NamedTuple):
    each: Tensor
    """[S]."""
    clipped: Tensor
    """[S] bool, detached."""


def clipped_losses(
    ratio: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float | None
) -> TokenLosses:
    """Token by token, for the [S] ratios of the policy being trained and the one that sampled."""
    high = epsilon if epsilon_high is None else epsilon_high
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - epsilon, 1.0 + high)
    return TokenLosses(torch.maximum(unclipped, clipped), (clipped > unclipped).detach())


def squared(log_ratio: Tensor) -> Tensor:
    """`PolicyLoss.approx_kl`."""
    return (0.5 * log_ratio.detach().square()).sum()


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling: what a token counts that another program sampled.

    min(p / q, cap), with p of the trainer and q of the sampler, from the same weights: "Your
    efficient RL framework secretly brings you off-policy RL training" (Yao et al. 2025).

    Args:
        old_logprobs: [S] under the policy that sampled, as the trainer computes it.
        sampler_logprobs: [S] as the sampler reported them.
    """
    return (old_logprobs - sampler_logprobs).exp().clamp(max=cap)


class ValueLoss(NamedTuple):
    loss: Tensor
    """[] sum over the tokens."""
    clipped: Tensor
    """[] detached number of tokens where the clipped error is the larger one."""


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, epsilon: float
) -> ValueLoss:
    """Half the larger of the squared errors with and without clipping the change of the value.

    open-instruct, ppo_vllm_thread_ray_gtrl.py; all arguments are [S].
    """
    near = old_values + (values - old_values).clamp(-epsilon, epsilon)
    unclipped = (values - returns).square()
    clipped = (near - returns).square()
    return ValueLoss(
        0.5 * torch.maximum(unclipped, clipped).sum(), (clipped > unclipped).sum().detach()
    )
