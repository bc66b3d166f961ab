"""The loss of group relative policy optimisation (DeepSeekMath, arXiv:2402.03300).

Shapes: S tokens of all completions of a pass.
"""

from __future__ import annotations

from torch import Tensor

from caravan.training.rl.advantages import kl_k3
from caravan.training.rl.ppo import PolicyLoss, clipped_surrogate


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference: Tensor,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float | None,
    beta: float,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate plus `beta` times the k3 estimate of the KL, summed over the tokens.

    The caller divides by the tokens of the mini-batch (as in DAPO and open-instruct): every token
    weighs the same, long completions are not discounted, as Dr. GRPO asks (arXiv:2503.20783).

    Args:
        logprobs: [S] under the policy being trained, at the sampling temperature.
        old_logprobs: [S] under the policy that sampled.
        reference: [S] under the reference policy.
        advantages: [S], each completion's advantage at all its tokens.
        weights: [S] of the tokens in the surrogate; see `clipped_surrogate`.
    """
    surrogate = clipped_surrogate(
        logprobs,
        old_logprobs,
        advantages,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        weights=weights,
    )
    if beta == 0:
        return surrogate
    return surrogate._replace(loss=surrogate.loss + beta * kl_k3(logprobs, reference).sum())
