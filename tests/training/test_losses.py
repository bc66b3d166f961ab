"""The losses against TRL's own code on the same tensors, values and gradients; where TRL has none,
against the formula written out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from caravan.training import output_head
from caravan.training.losses.dpo import DPO, dpo_loss
from caravan.training.losses.hinge import Hinge
from caravan.training.losses.ipo import IPO
from caravan.training.losses.kto import KTO
from caravan.training.losses.length_normalised_dpo import (
    LengthNormalisedDPO,
    length_normalised_dpo_loss,
)
from caravan.training.losses.orpo import ORPO
from caravan.training.losses.preference import PairLogProbs, PairLoss, PreferenceLoss
from caravan.training.losses.reward import bradley_terry_loss
from caravan.training.losses.robust_dpo import RobustDPO
from caravan.training.losses.sft import cross_entropy
from caravan.training.losses.simpo import SimPO

PAIRS, TOKENS, PROMPT = 6, 12, 3


class Rows:
    """Token log-probabilities [2 * PAIRS, TOKENS - 1] of random completions, chosen rows first, as
    a model would give them: policy (with gradient) and reference."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(PROMPT + 1, TOKENS + 1, (2 * PAIRS,), generator=generator)
        at = torch.arange(TOKENS)
        self.attention_mask = (at < lengths[:, None]).long()
        self.completion_mask = ((at >= PROMPT) & (at < lengths[:, None])).long()
        shape = (2 * PAIRS, TOKENS - 1)
        self.reference = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        moved = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.policy = (self.reference + moved).clamp(max=-0.01).requires_grad_()

    def completions(self, values: Tensor) -> Tensor:
        """[2 * PAIRS] sums over the completions."""
        return (values * self.completion_mask[:, 1:]).sum(dim=1)

    def pairs(self, divergence: Tensor | None = None) -> PairLogProbs:
        chosen, rejected = self.completions(self.policy).chunk(2)
        tokens = self.completion_mask.sum(dim=1).chunk(2)
        references = self.completions(self.reference).chunk(2)
        return PairLogProbs(chosen, rejected, *references, *tokens, divergence)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.policy, retain_graph=True)[0]


class _Accelerator:
    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


class _Metrics(dict):
    def __missing__(self, key: str) -> Any:
        self[key] = _Metrics() if key in ("train", "eval") else []
        return self[key]


def trl(trainer: type, **settings: Any) -> Any:
    """A TRL trainer with only what its loss reads."""
    made = object.__new__(trainer)
    made.__dict__.update(
        accelerator=_Accelerator(), _metrics=_Metrics(), aux_loss_enabled=False, _tp_size=1,
        _total_train_tokens=0, **settings,
    )  # fmt: skip
    return made


def model_giving(rows: Rows, values: Tensor) -> Any:
    """A model whose fused head gives `values`, 0 outside the completions."""
    masked = values * rows.completion_mask[:, 1:]
    other = torch.zeros_like(masked)

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(
                log_probs=masked, entropy=other, mean_logits=other, is_top1=other.bool()
            )

    return Model()


def trl_dpo(rows: Rows, loss_type: str, beta: float, label_smoothing: float) -> tuple[Tensor, Any]:
    trainer = trl(
        DPOTrainer, beta=beta, label_smoothing=label_smoothing, loss_types=[loss_type],
        loss_weights=[1.0], f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False,
        precompute_ref_logps=True, model=SimpleNamespace(training=True),
    )  # fmt: skip
    chosen, rejected = rows.completions(rows.reference).chunk(2)
    inputs = {
        "input_ids": torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long),
        "attention_mask": rows.attention_mask,
        "completion_mask": rows.completion_mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer._compute_loss(model_giving(rows, rows.policy), inputs, return_outputs=False)
    return loss, trainer._metrics["train"]


def assert_same(rows: Rows, ours: Tensor, theirs: Tensor) -> None:
    """Equal values and equal gradients to every token's log-probability."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    gradient = rows.gradient(ours)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, rows.gradient(theirs), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "loss",
    [LengthNormalisedDPO(beta=5), LengthNormalisedDPO(beta=0.7), DPO(beta=0.1), DPO(beta=0.5),
     Hinge(beta=0.3), IPO(beta=0.1), IPO(beta=2), RobustDPO(beta=0.2, label_smoothing=0.3)],
    ids=lambda loss: f"{loss.loss_type}-{loss.beta}",
)  # fmt: skip
def test_losses_with_a_reference_are_those_of_trl(loss: PreferenceLoss, seed: int) -> None:
    rows = Rows(seed)
    smoothing = getattr(loss, "label_smoothing", 0.0)
    theirs, metrics = trl_dpo(rows, loss.loss_type, loss.beta, smoothing)
    result = loss(rows.pairs())
    assert_same(rows, result.losses.mean(), theirs)
    if loss.loss_type in ("sigmoid", "hinge", "robust"):
        for name, values in (
            ("rewards/chosen", result.chosen_rewards),
            ("rewards/rejected", result.rejected_rewards),
            ("rewards/accuracies", (result.chosen_rewards > result.rejected_rewards).double()),
        ):
            assert values.mean().item() == pytest.approx(metrics[name][0], rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (10.0, 3.0)])
def test_simpo_is_that_of_trl(beta: float, gamma: float, label_smoothing: float) -> None:
    rows = Rows()
    given = rows.pairs()
    trainer = trl(
        CPOTrainer, alpha=0.0, beta=beta, simpo_gamma=gamma, loss_type="simpo",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    theirs, chosen, rejected = trainer.cpo_loss(
        given.policy_chosen / given.chosen_tokens, given.policy_rejected / given.rejected_tokens
    )
    loss = SimPO(beta=beta, simpo_gamma=gamma, label_smoothing=label_smoothing)
    ours = loss(without_reference(given))
    assert_same(rows, ours.losses.mean(), theirs.mean())
    torch.testing.assert_close(ours.chosen_rewards, chosen)
    torch.testing.assert_close(ours.rejected_rewards, rejected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_that_of_trl(label_smoothing: float) -> None:
    rows = Rows()
    given = rows.pairs()
    trainer = trl(
        CPOTrainer, alpha=0.0, beta=0.2, loss_type="sigmoid", label_smoothing=label_smoothing
    )
    theirs, _, _ = trainer.cpo_loss(given.chosen_ratio, given.rejected_ratio)
    ours = DPO(beta=0.2, label_smoothing=label_smoothing)(given)
    assert_same(rows, ours.losses.mean(), theirs.mean())
    theirs, _, _ = trainer.cpo_loss(
        given.chosen_ratio / given.chosen_tokens, given.rejected_ratio / given.rejected_tokens
    )
    ours = LengthNormalisedDPO(beta=0.2, label_smoothing=label_smoothing)(given)
    assert_same(rows, ours.losses.mean(), theirs.mean())


def test_orpo_is_that_of_trl_with_the_cross_entropy_of_the_completion() -> None:
    rows = Rows()
    given = rows.pairs()
    chosen = given.policy_chosen / given.chosen_tokens
    rejected = given.policy_rejected / given.rejected_tokens
    trainer = trl(ORPOTrainer, beta=0.3)
    # In float32, as TRL casts there.
    preference, *_, ratio, odds = trainer.odds_ratio_loss(chosen, rejected)
    ours = ORPO(beta=0.3)(without_reference(given))
    theirs = (-chosen - preference).mean()
    assert ours.losses.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(
        rows.gradient(ours.losses.mean()), rows.gradient(theirs), rtol=1e-4, atol=1e-7
    )
    assert ours.others["log_odds_ratio"].mean().item() == pytest.approx(ratio.item(), rel=1e-5)
    assert ours.others["log_odds_chosen"].mean().item() == pytest.approx(odds.item(), rel=1e-4)
    assert ours.others["nll_loss"].mean().item() == pytest.approx(-chosen.mean().item())


@pytest.mark.parametrize("divergence", [-0.5, 0.0, 1.7])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.33)])
def test_kto_is_that_of_trl_on_the_unpaired_completions(
    divergence: float, weights: tuple[float, float]
) -> None:
    rows = Rows()
    labels = torch.tensor([True] * PAIRS + [False] * PAIRS)
    trainer = trl(
        KTOTrainer, beta=0.2, desirable_weight=weights[0], undesirable_weight=weights[1],
        loss_type="kto", calculate_KL=True, precompute_ref_logps=True,
        model=SimpleNamespace(training=True),
        _compute_kl_logps=lambda model, batch: torch.full((2 * PAIRS,), divergence).double(),
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long),
        "attention_mask": rows.attention_mask,
        "completion_mask": rows.completion_mask,
        "label": labels,
        "ref_logps": rows.completions(rows.reference),
        "ref_KL_logps": torch.zeros(2 * PAIRS).double(),
    }
    theirs = trainer._compute_loss(model_giving(rows, rows.policy), inputs, return_outputs=False)
    loss = KTO(beta=0.2, desirable_weight=weights[0], undesirable_weight=weights[1])
    ours = loss(rows.pairs(torch.tensor(divergence).double()))
    assert_same(rows, ours.losses.mean(), theirs)
    metrics = trainer._metrics["train"]
    assert ours.others["kl"].mean().item() == pytest.approx(metrics["kl"][0])
    assert ours.chosen_rewards.mean().item() == pytest.approx(metrics["rewards/chosen"][0])
    assert ours.rejected_rewards.mean().item() == pytest.approx(metrics["rewards/rejected"][0])


@pytest.mark.parametrize("margins", [None, [0.0, 1.0, 2.5, 0.5, 4.0, 0.25]])
@pytest.mark.parametrize("centering", [None, 0.01])
def test_bradley_terry_is_that_of_trl(centering: float | None, margins: list[float] | None) -> None:
    rewards = torch.randn(2 * PAIRS, 1, generator=torch.Generator().manual_seed(1))
    rewards.requires_grad_()
    trainer = trl(
        RewardTrainer, model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=centering),
    )  # fmt: skip

    def model(**_: Any) -> Any:
        return SimpleNamespace(logits=rewards)

    asked = {} if margins is None else {"margin": torch.tensor(margins)}
    theirs = trainer.compute_loss(model, {"attention_mask": torch.ones(2 * PAIRS, 4), **asked})
    chosen, rejected = rewards.squeeze(1).chunk(2)
    asked_of_ours = asked.get("margin", 0.0)
    ours = bradley_terry_loss(chosen, rejected, asked_of_ours, centering=centering or 0.0).mean()
    assert ours.item() == pytest.approx(theirs.item())
    torch.testing.assert_close(
        torch.autograd.grad(ours, rewards), torch.autograd.grad(theirs, rewards)
    )


def without_reference(pairs: PairLogProbs) -> PairLogProbs:
    nothing = torch.empty(0)
    return pairs._replace(reference_chosen=nothing, reference_rejected=nothing)


@pytest.mark.parametrize("loss", [SimPO(), ORPO()], ids=lambda loss: loss.loss_type)
def test_losses_without_a_reference_say_so(loss: PreferenceLoss) -> None:
    assert not loss.needs_reference
    assert loss(without_reference(Rows().pairs())).losses.shape == (PAIRS,)


@pytest.mark.parametrize(
    "loss",
    [LengthNormalisedDPO(), DPO(), RobustDPO(), Hinge(), IPO(), SimPO(), KTO(), ORPO()],
    ids=lambda loss: loss.loss_type,
)
def test_every_loss_is_finite_and_draws_the_right_way_at_extremes(loss: PreferenceLoss) -> None:
    for policy in (-1e-9, -1e-3, -50.0, -5000.0):
        chosen = torch.tensor([policy, policy], requires_grad=True)
        rejected = torch.tensor([-50.0, -1e-9], requires_grad=True)
        length, reference = torch.tensor([5, 5]), torch.tensor([-50.0, -50.0])
        given = PairLogProbs(
            chosen, rejected, reference, reference, length, length, torch.tensor(0.5)
        )
        result: PairLoss = loss(given)
        assert torch.isfinite(result.losses).all()
        result.losses.sum().backward()
        assert torch.isfinite(chosen.grad).all()
        assert torch.isfinite(rejected.grad).all()
        if loss.loss_type != "ipo":  # which may have gone beyond its target
            assert (chosen.grad <= 0).all()
            assert (rejected.grad >= 0).all()


# --- by hand ------------------------------------------------------------------------------------


def by_hand() -> PairLogProbs:
    return PairLogProbs(
        policy_chosen=torch.tensor([-10.0, -4.0], requires_grad=True),
        policy_rejected=torch.tensor([-20.0, -3.0]),
        reference_chosen=torch.tensor([-12.0, -4.0]),
        reference_rejected=torch.tensor([-19.0, -5.0]),
        chosen_tokens=torch.tensor([4, 2]),
        rejected_tokens=torch.tensor([5, 4]),
    )


def test_cross_entropy_is_the_sum_of_the_token_losses():
    # The head says 1/2 to the first token and 1/4 to the second: -(ln 1/2 + ln 1/4) = 3 ln 2
    head = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log().T
    loss = cross_entropy(torch.eye(2), head, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(3 * math.log(2))


def test_cross_entropy_is_that_of_torch_values_and_gradients(monkeypatch):
    monkeypatch.setattr(output_head, "LOGITS_PER_CHUNK", 11 * 3)  # three tokens at a time
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, requires_grad=True)
    tokens = torch.arange(7) % 11
    ours = cross_entropy(hidden, head, tokens)
    theirs = F.cross_entropy(hidden @ head.T, tokens, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item())
    torch.testing.assert_close(
        torch.autograd.grad(ours / 7, (hidden, head)),
        torch.autograd.grad(theirs / 7, (hidden, head)),
    )


def test_plain_dpo_on_numbers_worked_by_hand():
    # log-ratios: chosen 2 and 0, rejected -1 and 2; margins 0.1 * 3 and 0.1 * -2
    result = dpo_loss(by_hand(), beta=0.1)
    expected = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.2))]
    assert result.losses.tolist() == pytest.approx(expected)
    assert result.chosen_rewards.tolist() == pytest.approx([0.2, 0.0])
    assert result.rejected_rewards.tolist() == pytest.approx([-0.1, 0.2])


def test_length_normalised_dpo_on_numbers_worked_by_hand():
    # per token: chosen 2/4 and 0, rejected -1/5 and 2/4; margins 5 * 0.7 and 5 * -0.5
    result = length_normalised_dpo_loss(by_hand(), beta=5.0)
    expected = [math.log(1 + math.exp(-3.5)), math.log(1 + math.exp(2.5))]
    assert result.losses.tolist() == pytest.approx(expected)
    assert result.chosen_rewards.tolist() == pytest.approx([2.5, 0.0])
    assert result.rejected_rewards.tolist() == pytest.approx([-1.0, 2.5])


def test_ipo_on_numbers_worked_by_hand():
    # margins per token 0.7 and -0.5, target 1 / (2 * 0.1) = 5
    result = IPO(beta=0.1)(by_hand())
    assert result.losses.tolist() == pytest.approx([4.3**2, 5.5**2])


def test_the_gradient_of_length_normalised_dpo_is_the_derivative_of_its_formula():
    # d -log sigmoid(m) / d policy_chosen = -sigmoid(-m) * beta / tokens
    given = by_hand()
    length_normalised_dpo_loss(given, beta=5.0).losses.sum().backward()
    expected = [-5 / 4 / (1 + math.exp(3.5)), -5 / 2 / (1 + math.exp(-2.5))]
    assert given.policy_chosen.grad.tolist() == pytest.approx(expected)


def test_a_beta_that_looks_like_that_of_another_loss_is_doubted():
    assert "looks like a beta of plain DPO" in next(LengthNormalisedDPO(beta=0.1).doubts())
    assert "set beta: 5, or loss_type: sigmoid" in next(LengthNormalisedDPO(beta=0.1).doubts())
    assert "looks like a beta of length-normalised DPO" in next(DPO(beta=5).doubts())
    for fine in (LengthNormalisedDPO(), LengthNormalisedDPO(beta=1), DPO(), DPO(beta=0.5)):
        assert not list(fine.doubts())


def test_bradley_terry_on_numbers_worked_by_hand():
    losses = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]
    assert losses.tolist() == pytest.approx(expected)
