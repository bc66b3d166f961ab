import pytest
import torch

from caravan.training.optim import NonFiniteError, Schedule, Updater


def test_linear_schedule_with_warm_up():
    schedule = Schedule(1.0, total_steps=10, kind="linear", warmup_ratio=0.2)
    rates = [schedule.at(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_schedule_falls_from_the_full_rate_through_half_of_it():
    schedule = Schedule(2.0, total_steps=8, kind="cosine")
    assert schedule.at(0) == pytest.approx(2.0)
    assert schedule.at(4) == pytest.approx(1.0)
    assert schedule.at(7) == pytest.approx(0.0761, abs=1e-4)


def test_constant_schedule_keeps_the_rate_after_warm_up():
    schedule = Schedule(2.0, total_steps=4, kind="constant", warmup_ratio=0.5)
    assert [schedule.at(step) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]


def test_norms_do_not_decay_and_matrices_do():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    updater = Updater(model, Schedule(1e-3, 1), weight_decay=0.1)
    decays = {
        tuple(p.shape): group["weight_decay"]
        for group in updater.optimizer.param_groups
        for p in group["params"]
    }
    assert decays == {(2, 2): 0.1, (2,): 0.0}


def test_gradients_are_clipped_to_the_norm_and_the_norm_reported_is_from_before():
    model = torch.nn.Linear(2, 1, bias=False)
    updater = Updater(model, Schedule(1e-3, 1), max_grad_norm=1.0)
    updater.backward((model.weight * torch.tensor([[30.0, 40.0]])).sum())
    assert updater.step(0).grad_norm == pytest.approx(50.0)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone():
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    updater = Updater(model, Schedule(1e-3, 1))
    updater.backward((model.weight * float("nan")).sum())
    with pytest.raises(NonFiniteError, match="step 0: the gradient norm is nan"):
        updater.step(0)
    assert torch.equal(model.weight, before)
