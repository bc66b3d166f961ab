import math

import pytest
import torch

from caravan.training.losses.dpo import (
    DPO_LOSSES,
    PairLogProbs,
    dpo_loss,
    length_normalised_dpo_loss,
)
from caravan.training.losses.reward import bradley_terry_loss
from caravan.training.losses.sft import cross_entropy


def pairs() -> PairLogProbs:
    return PairLogProbs(
        policy_chosen=torch.tensor([-10.0, -4.0], requires_grad=True),
        policy_rejected=torch.tensor([-20.0, -3.0]),
        reference_chosen=torch.tensor([-12.0, -4.0]),
        reference_rejected=torch.tensor([-19.0, -5.0]),
        chosen_tokens=torch.tensor([4, 2]),
        rejected_tokens=torch.tensor([5, 4]),
    )


def test_cross_entropy_is_the_sum_of_the_token_losses():
    # -(ln 1/2 + ln 1/4) = 3 ln 2
    loss = cross_entropy(torch.tensor([0.5, 0.25]).log())
    assert loss.item() == pytest.approx(3 * math.log(2))


def test_plain_dpo_on_numbers_worked_by_hand():
    # log-ratios: chosen 2 and 0, rejected -1 and 2; margins 0.1 * 3 and 0.1 * -2
    result = dpo_loss(pairs(), beta=0.1)
    expected = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.2))]
    assert result.losses.tolist() == pytest.approx(expected)
    assert result.chosen_rewards.tolist() == pytest.approx([0.2, 0.0])
    assert result.rejected_rewards.tolist() == pytest.approx([-0.1, 0.2])


def test_length_normalised_dpo_on_numbers_worked_by_hand():
    # per token: chosen 2/4 and 0, rejected -1/5 and 2/4; margins 5 * 0.7 and 5 * -0.5
    result = length_normalised_dpo_loss(pairs(), beta=5.0)
    expected = [math.log(1 + math.exp(-3.5)), math.log(1 + math.exp(2.5))]
    assert result.losses.tolist() == pytest.approx(expected)
    assert result.chosen_rewards.tolist() == pytest.approx([2.5, 0.0])
    assert result.rejected_rewards.tolist() == pytest.approx([-1.0, 2.5])


def test_the_gradient_of_length_normalised_dpo_is_the_derivative_of_its_formula():
    # d -log sigmoid(m) / d policy_chosen = -sigmoid(-m) * beta / tokens
    given = pairs()
    length_normalised_dpo_loss(given, beta=5.0).losses.sum().backward()
    expected = [-5 / 4 / (1 + math.exp(3.5)), -5 / 2 / (1 + math.exp(-2.5))]
    assert given.policy_chosen.grad.tolist() == pytest.approx(expected)


def test_aliases_name_the_same_losses():
    assert DPO_LOSSES["dpo_norm"] is DPO_LOSSES["sigmoid_norm"] is length_normalised_dpo_loss
    assert DPO_LOSSES["dpo"] is DPO_LOSSES["sigmoid"] is dpo_loss


def test_bradley_terry_on_numbers_worked_by_hand():
    losses = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]
    assert losses.tolist() == pytest.approx(expected)
