"""A sweep on this machine: members that fail, and members that are never started."""

from __future__ import annotations

import re
import sys
from functools import partial

import pytest

from caravan.errors import RecipeError, StoreError
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan_command import command_here
from caravan_pipelines.cli import sweep as command
from caravan_pipelines.launch import local
from caravan_pipelines.sweep import sweep_members


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def sweep(settings, mini, monkeypatch, capsys):
    """A sweep over three betas whose runs end in the given states; gives what is printed."""

    def call(*ends: State, code: int, over: str = "dpo.beta=1,2,5", recipe: str = "") -> str:
        left = iter(ends)

        def execute(run_id, settings, *, detach):
            state = next(left)
            with Registry(settings.resolved_registry_url) as registry:
                registry.update_run_state(run_id, state)
                train(registry, run_id, state)
            if state is not State.SUCCEEDED:
                raise SystemExit(1)

        monkeypatch.setattr(command, "execute", execute)
        caravan = command_here(settings, monkeypatch, capsys)
        printed = caravan("sweep", recipe or str(mini), "--over", over, code=code)
        assert next(left, None) is None
        return printed

    return call


def train(registry, run_id, state):
    """Record the ends of an SFT that all runs share, and of a DPO that knows its beta."""
    beta = registry.get_run(run_id).recipe["dpo"]["beta"]
    sft = {"loss": 2.5, "grad_norm": 1.0}
    for node, metrics in (("sft", sft), ("dpo", {"loss": 0.25, "rewards/margins": beta / 2})):
        stage = registry.open_stage_run(run_id, node, node, f"{node}-{run_id}")
        registry.log_metrics(stage.id, 1, {"validation/loss": 3.0 + beta * (node == "dpo")})
        registry.finish_stage_run(stage.id, state, metrics=metrics)


def rows(printed):
    lines = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line[1:-1]] for line in lines]


def states(settings):
    with Registry(settings.resolved_registry_url) as registry:
        return [run.state for run in reversed(registry.list_runs())]


def test_a_member_that_fails_does_not_keep_the_others_from_running(sweep, settings):
    ends = [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    printed = sweep(*ends, code=1)

    assert states(settings) == ends
    assert [row[1:3] for row in rows(printed)[:3]] == [
        ["succeeded", "dpo.beta=1"], ["failed", "dpo.beta=2"], ["succeeded", "dpo.beta=5"],
    ]  # fmt: skip
    assert "not started" not in printed


def test_numbers_of_training_are_compared_where_they_differ(sweep, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    long = "dpo.learning_rate=0.000000500001,0.000000500002"
    printed = sweep(State.SUCCEEDED, State.SUCCEEDED, code=0, over=long)
    assert "dpo.learning_rate=0.000000500002" in printed  # whole, as no terminal is too narrow
    assert "Training, where it differs" not in printed

    printed = sweep(State.SUCCEEDED, State.FAILED, State.SUCCEEDED, code=1)
    assert "│values│dpo margin│dpo held-out loss│" in re.sub(r" *┃ *", "│", printed)
    assert rows(printed)[3:] == [
        ["dpo.beta=1", "0.5", "4"], ["dpo.beta=2", "", ""], ["dpo.beta=5", "2.5", "8"],
    ]  # fmt: skip


def test_the_steps_that_were_selected_are_compared(sweep, monkeypatch):
    def select(registry, run_id, state):
        beta = registry.get_run(run_id).recipe["rlvr"]["beta"]
        stage = registry.open_stage_run(run_id, "select", "select", f"select-{run_id}")
        registry.finish_stage_run(stage.id, state, metrics={"step": 100 * beta, "mean": 0.5})

    monkeypatch.setattr(sys.modules[__name__], "train", select)
    printed = sweep(State.SUCCEEDED, State.SUCCEEDED, code=0, over="rlvr.beta=1,2")
    assert "│values│select step│" in re.sub(r" *┃ *", "│", printed)
    assert rows(printed)[2:] == [["rlvr.beta=1", "100"], ["rlvr.beta=2", "200"]]


def test_a_run_stands_for_its_recipe(sweep, settings):
    sweep(State.SUCCEEDED, code=0, over="dpo.beta=7")
    sweep(State.SUCCEEDED, code=0, over="sft.num_train_epochs=3", recipe="latest")

    with Registry(settings.resolved_registry_url) as registry:
        changed, first = (run.recipe for run in registry.list_runs())
    assert (changed["dpo"]["beta"], changed["sft"]["num_train_epochs"]) == (7, 3)
    assert first["sft"]["num_train_epochs"] != 3


def test_all_members_that_succeed_are_a_success(sweep):
    sweep(*[State.SUCCEEDED] * 3, code=0)


def test_a_sweep_that_is_stopped_says_which_members_did_not_start(sweep, settings):
    printed = sweep(State.CANCELLED, code=1)

    assert states(settings) == [State.CANCELLED]
    assert "not started: dpo.beta=2\nnot started: dpo.beta=5\n" in printed


def test_a_member_that_is_refused_comes_after_the_table_of_the_others(sweep, settings, monkeypatch):
    create, made = local.create_run, []

    def create_one(*args, **kwargs):
        if made:
            raise StoreError("the store is full; free some space")
        made.append(create(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(local, "create_run", create_one)
    printed = sweep(State.SUCCEEDED, code=2)

    assert made[0] in printed
    assert "not started: dpo.beta=2\nnot started: dpo.beta=5\n" in printed
    assert "error: the store is full; free some space" in printed


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["dpo.beta=1,2", "dpo.beta=5"], "--over dpo.beta is given 2 times"),
        (["dpo.beta=1,1.0"], "dpo.beta=1 and dpo.beta=1.0 give the same recipe"),
        (
            ["sft.max_length=64,128", "sft.max_seq_length=64,128"],
            "sft.max_length=64 sft.max_seq_length=64 and .* give the same recipe",
        ),
    ],
)
def test_a_sweep_that_would_run_the_same_twice_is_refused(mini, axes, said):
    with pytest.raises(RecipeError, match=said):
        sweep_members(partial(load_recipe, mini), axes, [])
