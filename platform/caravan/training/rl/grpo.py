"""The losses of group relative policy optimisation (DeepSeekMath, arXiv:2402.03300) and of what
came after it.

Shapes: S tokens of all completions of a pass, C completions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caravan.recipe import GRPOConfig
from caravan.training.rl.advantages import kl_k3
from caravan.training.rl.ppo import PolicyLoss, TokenLosses, clipped_losses, squared


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    config: GRPOConfig,
    *,
    beta: float,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
) -> PolicyLoss:
    """What the ratios of policies make of the advantages, plus `beta` times the k3 estimate of the
    KL, summed over the tokens. The caller divides by the tokens of the mini-batch.

    Args:
        logprobs: [S] under the policy being trained, at the sampling temperature.
        old_logprobs: [S] under the policy that sampled.
        reference: [S] under the reference policy.
        advantages: [S], each completion's advantage at all its tokens.
        lengths: [C] in tokens.
        weights: [S] of the tokens, as `ppo.importance_weights`; the penalty is left as it is.
        scale: [S] what each token counts, penalty included; see `token_scale`.
    """
    log_ratio = logprobs - old_logprobs
    if config.importance_sampling_level == "sequence":
        ratio = completion_means(log_ratio, lengths).exp()
    else:
        ratio = log_ratio.exp()
    if config.loss_type == "cispo":
        losses = capped_losses(ratio, logprobs, advantages, cap=config.ratio_cap)
    else:
        losses = clipped_losses(
            ratio, advantages, epsilon=config.epsilon, epsilon_high=config.epsilon_high
        )
    loss = _total(losses.each if weights is None else weights * losses.each, scale)
    if beta > 0:
        loss = loss + beta * _total(kl_k3(logprobs, reference), scale)
    return PolicyLoss(loss, losses.clipped.sum(), squared(log_ratio))


def completion_means(values: Tensor, lengths: Tensor) -> Tensor:
    """[S] at each token the mean of its completion.

    Of log-ratios it is that of the completion's likelihoods, for a token: GSPO (arXiv:2507.18071,
    eq. 7).
    """
    parts = torch.split(values, lengths.tolist())
    return torch.cat([part.mean().expand(len(part)) for part in parts])


def capped_losses(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, cap: float
) -> TokenLosses:
    """CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4): the ratio weighs a token, at most by `cap`, and
    has no gradient, so that none of the tokens is left out."""
    ratio = ratio.detach()
    return TokenLosses(-ratio.clamp(max=cap) * advantages * logprobs, ratio > cap)


def token_scale(
    config: GRPOConfig, lengths: Tensor, *, mean_length: float, max_length: int
) -> Tensor | None:
    """[S] what each token counts; None where all count alike.

    Args:
        lengths: [C] in tokens.
        mean_length: of the completions of the mini-batch.
        max_length: that a completion may have.
    """
    if config.loss_type == "grpo":  # each completion counts alike: arXiv:2402.03300, eq. 3
        return (mean_length / lengths).repeat_interleave(lengths)
    if config.loss_type == "dr_grpo":  # arXiv:2503.20783: no length of this batch plays a part
        return (mean_length / max_length) * torch.ones_like(lengths).repeat_interleave(lengths)
    return None  # DAPO, arXiv:2503.14476, eq. 8


def _total(values: Tensor, scale: Tensor | None) -> Tensor:
    return values.sum() if scale is None else (scale * values).sum()
