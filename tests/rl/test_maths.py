"""Advantages and losses on numbers worked by hand, and against independent references."""

import math

import pytest
import torch
from torch import tensor

from caravan.recipe import GRPOConfig
from caravan.training.rl.advantages import (
    generalized_advantages,
    group_advantages,
    kl_k1,
    kl_k3,
    token_rewards,
    whiten,
)
from caravan.training.rl.grpo import grpo_loss
from caravan.training.rl.ppo import clipped_surrogate, clipped_value_loss, importance_weights

LOG2 = math.log(2)


def test_kl_estimators_by_hand():
    # Policy twice as likely as the reference: r = 1/2, k1 = log 2, k3 = 1/2 - 1 + log 2.
    policy, reference = tensor([-1.0]), tensor([-1.0 - LOG2])
    assert kl_k1(policy, reference).item() == pytest.approx(LOG2)
    assert kl_k3(policy, reference).item() == pytest.approx(LOG2 - 0.5)


def test_both_kl_estimators_have_the_kl_as_their_mean():
    torch.manual_seed(0)
    p, q = torch.randn(7).log_softmax(0).double(), torch.randn(7).log_softmax(0).double()
    expected = (p.exp() * (p - q)).sum().item()
    assert (p.exp() * kl_k1(p, q)).sum().item() == pytest.approx(expected)
    assert (p.exp() * kl_k3(p, q)).sum().item() == pytest.approx(expected, abs=1e-6)


def test_the_score_is_added_at_the_last_token_and_the_penalty_at_every_one():
    # Log-ratios 0.5, 1 and 0.25: with beta 0.1 the penalties are -0.05, -0.1, -0.025.
    rewards = token_rewards(
        tensor([10.0, -10.0]),
        tensor([[-1.0, -1.0, -9.0], [-2.0, -2.0, -2.0]]),
        tensor([[-1.5, -2.0, -1.0], [-2.0, -2.0, -2.25]]),
        tensor([[True, True, False], [True, True, True]]),
        beta=0.1,
    )
    expected = tensor([[-0.05, 9.9, 0.0], [0.0, 0.0, -10.025]])
    torch.testing.assert_close(rewards, expected)


def test_gae_by_hand():
    # lambda 1/2, gamma 1, values 1, 2, 3, reward 4 at the end:
    # delta_2 = 4 - 3 = 1; delta_1 = 3 - 2 = 1; delta_0 = 2 - 1 = 1
    # A_2 = 1; A_1 = 1 + 1/2 = 1.5; A_0 = 1 + 1.5 / 2 = 1.75; returns = A + V
    estimates = generalized_advantages(
        tensor([[0.0, 0.0, 4.0]]), tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool),
        gamma=1.0, gae_lambda=0.5,
    )  # fmt: skip
    assert estimates.advantages.tolist() == [[1.75, 1.5, 1.0]]
    assert estimates.returns.tolist() == [[2.75, 3.5, 4.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_the_exponential_mean_of_n_step_advantages(gamma, gae_lambda):
    """Against the definition (arXiv:1506.02438, eq. 16), summed term by term."""
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 1, 8, 3]
    rewards = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    values = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    mask = torch.arange(8)[None] < tensor(lengths)[:, None]
    actual = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    for row, length in enumerate(lengths):
        v = [*values[row, :length].tolist(), 0.0]
        r = rewards[row].tolist()
        for t in range(length):
            expected = sum(
                (gamma * gae_lambda) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k])
                for k in range(t, length)
            )
            assert actual.advantages[row, t].item() == pytest.approx(expected)
            assert actual.returns[row, t].item() == pytest.approx(expected + v[t])
    assert not actual.advantages[~mask].any()


def test_whitening_gives_mean_0_and_variance_1_inside_the_mask():
    torch.manual_seed(0)
    mask = torch.rand(4, 6) < 0.7
    values = torch.randn(4, 6) * 5 + 3
    white = whiten(values, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].var().item() == pytest.approx(1, abs=1e-5)
    assert not white[~mask].any()
    assert whiten(values, torch.zeros(4, 6, dtype=torch.bool)).abs().sum() == 0


def test_group_advantages_by_hand():
    # Rewards 10, 0, 0, 10: mean 5, population deviation 5. Rewards 10, 0, 0, 0: mean 2.5,
    # deviation sqrt(18.75). Equal rewards teach nothing.
    rewards = tensor([[10.0, 0, 0, 10], [10, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    everything = torch.ones(3, 4, dtype=torch.bool)
    scaled = group_advantages(rewards, everything, scale_rewards=True)
    assert scaled.informative.tolist() == [True, True, False]
    deviation = math.sqrt(18.75)
    expected = [[1, -1, -1, 1], [7.5 / deviation, *[-2.5 / deviation] * 3], [0, 0, 0, 0]]
    torch.testing.assert_close(scaled.advantages, tensor(expected, dtype=torch.float32))
    plain = group_advantages(rewards, everything, scale_rewards=False)
    torch.testing.assert_close(
        plain.advantages, tensor([[5.0, -5, -5, 5], [7.5, -2.5, -2.5, -2.5], [0, 0, 0, 0]])
    )


def test_an_unknown_reward_takes_no_part_in_its_group():
    # Of 10, 0 and an unknown one: mean 5, deviation 5. With one known reward there is no group.
    rewards = tensor([[10.0, 0.0, 999.0], [10.0, 999.0, 999.0], [999.0, 999.0, 999.0]])
    counts = tensor([[True, True, False], [True, False, False], [False, False, False]])
    groups = group_advantages(rewards, counts, scale_rewards=True)
    torch.testing.assert_close(groups.advantages, tensor([[1.0, -1, 0], [0, 0, 0], [0, 0, 0]]))
    assert groups.informative.tolist() == [True, False, False]


def test_the_clipped_surrogate_by_hand():
    # Ratios 2, 2, 1/2, 1/2 with advantages 1, -1, 1, -1 and a range of 0.2:
    # min(2, 1.2) = 1.2; min(-2, -1.2) = -2; min(0.5, 0.8) = 0.5; min(-0.5, -0.8) = -0.8
    new = tensor([LOG2, LOG2, -LOG2, -LOG2])
    loss = clipped_surrogate(new, torch.zeros(4), tensor([1.0, -1, 1, -1]), epsilon=0.2)
    assert loss.loss.item() == pytest.approx(-(1.2 - 2 + 0.5 - 0.8))
    assert loss.clipped.item() == 2
    assert loss.approx_kl.item() == pytest.approx(4 * 0.5 * LOG2**2)


def test_clip_higher_moves_only_the_upper_end():
    new, advantages = tensor([LOG2, -LOG2]), tensor([1.0, -1.0])
    loss = clipped_surrogate(new, torch.zeros(2), advantages, epsilon=0.2, epsilon_high=0.5)
    assert loss.loss.item() == pytest.approx(-(1.5 - 0.8))


def test_clipped_tokens_have_no_gradient():
    new = tensor([LOG2, LOG2, -LOG2, -LOG2, 0.0], requires_grad=True)
    advantages = tensor([1.0, -1, 1, -1, 3])
    clipped_surrogate(new, torch.zeros(5), advantages, epsilon=0.2).loss.backward()
    # Where it counts, the gradient of -A * ratio is -A * ratio.
    torch.testing.assert_close(new.grad, tensor([0.0, 2.0, -0.5, 0.0, -3.0]))


@pytest.mark.parametrize("cap", [1.5, math.inf])
def test_importance_weights_undo_what_another_sampler_prefers_up_to_their_cap(cap):
    """Summed over every token that a sampler may draw, with the probability that it does, the
    gradient is that of the expected advantage of the policy itself, less where the cap binds."""
    torch.manual_seed(0)
    logits, advantages = torch.randn(9, requires_grad=True), torch.randn(9)
    policy, sampler = logits.log_softmax(0), torch.randn(9).log_softmax(0)
    weights = importance_weights(policy.detach(), sampler, cap=cap)
    drawn = sampler.exp() * advantages
    clipped_surrogate(policy, policy.detach(), drawn, epsilon=0.2, weights=weights).loss.backward()

    free = torch.zeros_like(logits).requires_grad_()
    with torch.no_grad():
        free.copy_(logits)
    p = free.softmax(0)
    expected, capped = tensor(0.0), 0
    for k in range(9):
        ratio = (p[k] / sampler[k].exp()).item()
        capped += ratio > cap
        expected = expected + advantages[k] * p[k] * min(1.0, cap / ratio)
    (-expected).backward()
    assert capped == (0 if cap == math.inf else 4)
    torch.testing.assert_close(logits.grad, free.grad)


def test_importance_weights_leave_the_penalty_of_grpo_as_it_is():
    new, advantages = tensor([0.0, 0.0]), tensor([1.0, 2.0])
    reference = tensor([LOG2, 0.0])
    loss = grpo_loss(
        new, new, reference, advantages, tensor([2]), GRPOConfig(),
        beta=0.5, weights=tensor([0.5, 2.0]),
    )  # fmt: skip
    assert loss.loss.item() == pytest.approx(-(0.5 * 1 + 2 * 2) + 0.5 * (1 - LOG2))


def test_the_value_loss_by_hand():
    # Old value 1, return 3, range 0.2. New 2: unclipped 1, clipped (1.2 - 3)^2 = 3.24.
    # New 0: unclipped 9, clipped (0.8 - 3)^2 = 4.84. New 1.1: both 1.9^2 = 3.61.
    loss = clipped_value_loss(
        tensor([2.0, 0.0, 1.1]), torch.ones(3), torch.full((3,), 3.0), epsilon=0.2
    )
    assert loss.loss.item() == pytest.approx(0.5 * (3.24 + 9 + 3.61))
    assert loss.clipped.item() == 1


def test_grpo_adds_the_kl_and_without_beta_does_not_look_at_the_reference():
    new, advantages = tensor([0.0, 0.0]), tensor([1.0, 2.0])
    reference = tensor([LOG2, 0.0])  # r = 2: k3 = 2 - 1 - log 2
    one_completion = (tensor([2]), GRPOConfig())
    loss = grpo_loss(new, new, reference, advantages, *one_completion, beta=0.5)
    assert loss.loss.item() == pytest.approx(-3 + 0.5 * (1 - LOG2))
    nan = torch.full((2,), math.nan)
    assert grpo_loss(new, new, nan, advantages, *one_completion, beta=0.0).loss.item() == -3


def test_the_grpo_gradient_is_that_of_the_policy_gradient_at_the_sampling_policy():
    """At ratio 1 the gradient is -A + beta (1 - r): score function plus that of k3."""
    new = tensor([-1.0, -2.0], requires_grad=True)
    reference, advantages = tensor([-1.5, -1.0]), tensor([0.7, -0.3])
    grpo_loss(
        new, new.detach(), reference, advantages, tensor([1, 1]), GRPOConfig(), beta=0.1
    ).loss.backward()
    ratio = (reference - new.detach()).exp()
    torch.testing.assert_close(new.grad, -advantages + 0.1 * (1 - ratio))
