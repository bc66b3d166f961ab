"""From rewards to advantages.

Shapes: N completions, R tokens of the longest, P prompts, G completions of a prompt (the group).
Completions are aligned on the left; `mask` [N, R] is True on their tokens, end token included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Log-ratio, per token in nats: unbiased for KL(policy || reference), may be negative."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """`r - 1 - log r` with r = reference / policy: unbiased, never negative, lower variance.

    Schulman, http://joschu.net/blog/kl-approx.html; eq. 4 of DeepSeekMath (arXiv:2402.03300).
    """
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(
    scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, *, beta: float
) -> Tensor:
    """[N, R] rewards of PPO: a KL penalty at every token, the score added at the last one.

    Tülu 3 (arXiv:2411.15124), section 6; the penalty is `beta` times the k1 estimator.

    Args:
        scores: [N], what the verifier gave, or what replaces it where the end token is missing.
        logprobs: [N, R] of the sampled tokens under the policy that sampled them.
        reference: [N, R] under the reference policy.
    """
    rewards = -beta * kl_k1(logprobs, reference) * mask
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


class Estimates(NamedTuple):
    advantages: Tensor
    """[N, R], 0 outside the mask."""
    returns: Tensor
    """[N, R] targets of the value model: advantages plus values."""


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> Estimates:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16).

    The episode ends with the completion: the value after its last token is 0.

    Args:
        rewards: [N, R].
        values: [N, R] of the state before each token.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    advantages = advantages * mask
    return Estimates(advantages, advantages + values)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with mean 0 and (unbiased) variance 1 over the mask, 0 outside it.

    Over the whole rollout batch, as in Tülu 3's code.
    """
    inside = values[mask]
    if inside.numel() < 2:
        return torch.zeros_like(values)
    scale = torch.rsqrt(inside.var() + 1e-8)
    return torch.where(mask, (values - inside.mean()) * scale, 0.0)


def informative_groups(rewards: Tensor, counts: Tensor) -> Tensor:
    """[P] bool: whether [P, G] `rewards` differ within a group, where they count."""
    # Compared as such: a mean of equal rewards may differ from them by rounding.
    high = rewards.masked_fill(~counts, -torch.inf).amax(dim=1)
    low = rewards.masked_fill(~counts, torch.inf).amin(dim=1)
    return high > low


class GroupAdvantages(NamedTuple):
    advantages: Tensor
    """[P, G]; 0 for completions that do not count."""
    informative: Tensor
    """[P] bool: the group has at least two different rewards, so there is something to learn."""


def group_advantages(rewards: Tensor, counts: Tensor, *, scale_rewards: bool) -> GroupAdvantages:
    """How much better each completion is than its group (arXiv:2402.03300, section 4.1.2).

    Args:
        rewards: [P, G]; ignored where `counts` is False.
        counts: [P, G] bool; False where the reward is not known.
        scale_rewards: Divide by the group's standard deviation (the population's, as in
            open-instruct). False is Dr. GRPO (arXiv:2503.20783), which does not let groups that
            nearly agree weigh more.
    """
    rewards = torch.where(counts, rewards, 0.0)
    number = counts.sum(dim=1, keepdim=True).clamp_min(1)
    centred = torch.where(counts, rewards - rewards.sum(dim=1, keepdim=True) / number, 0.0)
    informative = informative_groups(rewards, counts)
    if scale_rewards:
        deviation = (centred.square().sum(dim=1, keepdim=True) / number).sqrt()
        centred = centred / (deviation + 1e-8)
    return GroupAdvantages(centred * informative[:, None], informative)
