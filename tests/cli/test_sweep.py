"""A sweep on this machine: what its arms come to, members that fail, and members that wait."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from datetime import UTC, datetime
from functools import partial

import pytest
from rich.console import Console

from caravan.errors import RecipeError, StoreError
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.stages.context import Score
from caravan_command import command_here
from caravan_pipelines.cli import sweep as command
from caravan_pipelines.launch import local
from caravan_pipelines.sweep import sweep_members
from waiting import wait_until


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", heartbeat_seconds=0.1)


@pytest.fixture
def sweep(settings, mini, monkeypatch, capsys):
    """A sweep over three betas, unless other arguments are given, whose runs end in the given
    states; gives what is printed."""

    def call(*ends: State, code: int, over: str = "dpo.beta=1,2,5", given: tuple = ()) -> str:
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
        printed = caravan(*(given or ("sweep", str(mini), "--over", over)), code=code)
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
    assert "1 of 3 runs have not succeeded; continue with: caravan resume sweep:" in printed


def test_numbers_of_training_are_compared_where_they_differ(sweep, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    long = "dpo.learning_rate=0.000000500001,0.000000500002"
    printed = sweep(State.SUCCEEDED, State.SUCCEEDED, code=0, over=long)
    assert "dpo.learning_rate=5.00002e-07" in printed  # whole, as no terminal is too narrow
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
    sweep(State.SUCCEEDED, code=0, given=("sweep", "latest", "--over", "sft.num_train_epochs=3"))

    with Registry(settings.resolved_registry_url) as registry:
        changed, first = (run.recipe for run in registry.list_runs())
    assert (changed["dpo"]["beta"], changed["sft"]["num_train_epochs"]) == (7, 3)
    assert first["sft"]["num_train_epochs"] != 3


def test_all_members_that_succeed_are_a_success(sweep):
    sweep(*[State.SUCCEEDED] * 3, code=0)


def test_a_sweep_that_is_stopped_is_continued_where_it_was(sweep, settings):
    printed = sweep(State.SUCCEEDED, State.CANCELLED, code=1)
    assert states(settings) == [State.SUCCEEDED, State.CANCELLED, State.CANCELLED]
    assert [row[1] for row in rows(printed)[:3]] == ["succeeded", "cancelled", "cancelled"]

    tag = re.findall(r"continue with: caravan resume (sweep:\w+)", printed)[0]
    printed = sweep(State.SUCCEEDED, State.SUCCEEDED, code=0, given=("resume", tag))
    assert states(settings) == [State.SUCCEEDED] * 3
    assert [row[2] for row in rows(printed)[:3]] == ["dpo.beta=1", "dpo.beta=2", "dpo.beta=5"]
    assert "have not succeeded" not in printed


def test_members_that_wait_are_not_taken_for_forgotten(sweep, settings, monkeypatch):
    seen = []

    def look(registry, run_id, state):
        waiting = [run.id for run in registry.list_runs() if run.state is State.PENDING]
        since = datetime.now(UTC)
        for run in waiting:
            wait_until(lambda run=run: registry.get_run(run).heartbeat_at > since)
        seen.append(len(waiting))

    monkeypatch.setattr(sys.modules[__name__], "train", look)
    sweep(*[State.SUCCEEDED] * 3, code=0)
    assert seen == [2, 1, 0]


def test_a_member_that_was_lost_waits_again_while_others_run(sweep, settings, monkeypatch):
    printed = sweep(State.CANCELLED, code=1)
    with Registry(settings.resolved_registry_url) as registry:
        lost = registry.list_runs()[0].id
        registry.update_run_state(lost, State.RUNNING)
    impatient = settings.model_copy(update={"stale_after_seconds": 0.5})
    monkeypatch.setattr(command, "load_settings", lambda: impatient)
    time.sleep(0.6)

    def look(registry, run_id, state):
        if run_id != lost:  # whose turn is the last one
            wait_until(lambda: registry.get_run(lost).state is State.PENDING)

    monkeypatch.setattr(sys.modules[__name__], "train", look)
    tag = re.findall(r"sweep:\w+", printed)[0]
    sweep(*[State.SUCCEEDED] * 3, code=0, given=("resume", tag))


def test_members_that_are_cancelled_or_deleted_while_they_wait_are_left_out(
    sweep, settings, monkeypatch
):
    def give_up(registry, run_id, state):
        waiting = [run.id for run in registry.list_runs() if run.state is State.PENDING]
        for run in waiting:
            registry.update_run_state(run, State.CANCELLED)
        registry.delete_runs(waiting[:1])

    monkeypatch.setattr(sys.modules[__name__], "train", give_up)
    printed = sweep(State.SUCCEEDED, code=1)
    assert printed.count("does not wait any more") == 2
    assert states(settings) == [State.SUCCEEDED, State.CANCELLED]


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [
        (
            StoreError("the store is full; free some space"),
            2,
            "error: the store is full; free some",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_sweep_that_is_not_registered_whole_leaves_none(
    sweep, settings, monkeypatch, reason, code, said
):
    create, made = local.create_run, []

    def create_one(*args, **kwargs):
        if made:
            raise reason
        made.append(create(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(local, "create_run", create_one)
    printed = sweep(code=code)

    assert states(settings) == []
    assert said in printed


def test_a_member_that_cannot_be_started_comes_after_the_table(settings, sweep, monkeypatch):
    def refuse(run_id, settings, *, detach):
        raise StoreError("the disk is full")

    begun = sweep(State.CANCELLED, code=1)
    tag = re.findall(r"sweep:\w+", begun)[0]
    monkeypatch.setattr(command, "execute", refuse)
    with pytest.raises(StoreError, match="the disk is full"):
        command.execute_runs(tag, settings, Console())


def test_a_sweep_on_the_cluster_says_how_to_compare_and_resumes_what_has_stopped(
    settings, mini, monkeypatch, capsys
):
    def launch(recipes, settings, *, recipe_dir, tags):
        with Registry(settings.resolved_registry_url) as registry:
            made = [
                registry.create_run(recipe.model_dump(mode="json"), name=recipe.name, tags=own,
                                    seed=recipe.seed, recipe_digest="", backend="kubeflow")
                for recipe, own in zip(recipes, tags, strict=True)
            ]  # fmt: skip
            for run_id, state in zip(made, [State.SUCCEEDED, State.FAILED], strict=True):
                registry.update_run_state(run_id, state)
        return [command.kubeflow.Submitted((run_id,), "k", f"kfp/{run_id}", 0.1) for run_id in made]

    resumed = []
    monkeypatch.setattr(command.kubeflow, "launch_together", launch)
    monkeypatch.setattr(
        command.launch, "resume", lambda run, settings, *, detach: resumed.append((run.id, detach))
    )
    caravan = command_here(settings, monkeypatch, capsys)
    printed = caravan("sweep", str(mini), "--over", "seed=17,18", "--backend", "kubeflow")
    first, second = re.findall(r"^run (\S+)  pocket-mini  seed=1[78]$", printed, re.M)
    assert f"Kubeflow Pipelines: kfp/{first}\nKubeflow Pipelines: kfp/{second}\n" in printed
    tag = re.findall(r"compare them with: caravan show (sweep:\w+)", printed)[0]

    caravan("resume", tag)
    assert resumed == [(second, True)]
    assert "failed" in caravan("show", tag)


# --- what the arms come to ----------------------------------------------------------------------


SEEDS = ("--over", "seed=17,18,19")


def evaluate(right):
    """Record the evaluation of an SFT: of a hundred questions, the share that `right` says."""

    def record(registry, run_id, state):
        run = registry.get_run(run_id)
        if state is not State.SUCCEEDED:
            return
        stage = registry.open_stage_run(run_id, "evaluate-sft", "evaluate", run_id)
        share = right(run.recipe["dpo"]["beta"], run.seed)
        instances = {str(i): float(i < 100 * share) for i in range(100)}
        score = Score(task="math", metric="accuracy", value=share, low=0, high=1, n=100,
                      suite="dev", instances=instances)  # fmt: skip
        registry.add_scores(stage.id, [score])
        registry.finish_stage_run(stage.id, State.SUCCEEDED)

    return record


LUCK = {17: 0.0, 18: 0.1, 19: 0.02}


def test_arms_are_told_from_the_first_by_more_than_the_luck_of_seeds(sweep, settings, monkeypatch):
    """Beta 2 is better whatever the seed; beta 5 as much on average, by one lucky seed."""
    shares = {1: lambda s: 0.3 + LUCK[s], 2: lambda s: 0.5 + LUCK[s],
              5: lambda s: {17: 0.2, 18: 0.4, 19: 1.0}[s]}  # fmt: skip
    right = evaluate(lambda beta, seed: shares[beta](seed))
    monkeypatch.setattr(sys.modules[__name__], "train", right)
    over = ("sweep", "pocket", "--over", "dpo.beta=1,2,5", *SEEDS)
    printed = sweep(*[State.SUCCEEDED] * 9, code=0, given=over)
    assert [row[1:] for row in rows(printed)[-3:]] == [
        ["dpo.beta=1", "3", "34.0 ± 5.3", "", ""],
        ["dpo.beta=2", "3", "54.0 ± 5.3", "+20.0 [13.2, 26.8]", "better"],
        ["dpo.beta=5", "3", "53.3 ± 41.6", "+19.3 [-86.2, 124.9]", "within the noise"],
    ]
    assert "one seed" not in printed

    tag = re.findall(r"sweep:\w+", printed)[0]
    shown = json.loads(sweep(code=0, given=("show", tag, "--json")))
    assert shown["arms"] == [{"dpo.beta": 1}, {"dpo.beta": 2}, {"dpo.beta": 5}]
    assert [(run["arm"], run["seed"]) for run in shown["runs"]][:4] == [
        (0, 17), (0, 18), (0, 19), (1, 17),
    ]  # fmt: skip
    better = shown["scores"][1]
    assert (better["arm"], better["paired_seeds"], better["verdict"]) == (1, 3, "better")
    assert better["by_seed"] == {"17": 0.5, "18": 0.6, "19": 0.52}
    assert better["low"] == pytest.approx(0.1322, abs=1e-4)


def test_the_questions_behind_a_score_are_read_once(sweep, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "train", evaluate(lambda beta, seed: 0.5))
    read, asked = Registry.score_instances, []

    def counted(self, score_id):
        asked.append(score_id)
        return read(self, score_id)

    monkeypatch.setattr(Registry, "score_instances", counted)
    sweep(
        *[State.SUCCEEDED] * 9,
        code=0,
        given=("sweep", "pocket", "--over", "dpo.beta=1,2,5", *SEEDS),
    )
    assert len(asked) == len(set(asked)) == 9


def test_with_one_seed_its_noise_is_said_to_be_unknown(sweep, monkeypatch):
    right = evaluate(lambda beta, seed: 0.3 + 0.1 * beta)
    monkeypatch.setattr(sys.modules[__name__], "train", right)
    printed = sweep(*[State.SUCCEEDED] * 3, code=0)
    assert [row[2:] for row in rows(printed)[-3:]] == [
        ["1", "40.0", "", ""],
        ["1", "50.0", "+10.0 [4.0, 16.0]", "one seed: noise unknown"],
        ["1", "80.0", "+40.0 [30.2, 49.8]", "one seed: noise unknown"],
    ]
    assert "how far another seed would move the scores is unknown" in printed


def test_an_arm_whose_runs_failed_stays_in_the_table(sweep, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "train", evaluate(lambda beta, seed: 0.5))
    ends = [State.SUCCEEDED, State.FAILED, State.FAILED, State.FAILED, State.SUCCEEDED,
            State.SUCCEEDED]  # fmt: skip
    over = ("sweep", "pocket", "--over", "seed=17,18", "--over", "dpo.beta=1,2,5")
    printed = sweep(*ends, code=1, given=over)  # seed 17 has beta 1, seed 18 has beta 2 and 5
    assert [row[1:] for row in rows(printed)[-3:]] == [
        ["dpo.beta=1", "1 of 2", "50.0", "", ""],
        ["dpo.beta=2", "1 of 2", "50.0", "", ""],  # of another seed: not the same luck
        ["dpo.beta=5", "1 of 2", "50.0", "", ""],
    ]

    printed = sweep(*[State.FAILED] * 3, code=1)
    assert "no run has scores yet" in printed


def test_a_score_that_is_no_number_is_none(sweep, monkeypatch):
    right = evaluate(lambda beta, seed: math.nan if (beta, seed) == (2, 18) else 0.5 + LUCK[seed])
    monkeypatch.setattr(sys.modules[__name__], "train", right)
    over = ("sweep", "pocket", "--over", "dpo.beta=1,2", *SEEDS)
    printed = sweep(*[State.SUCCEEDED] * 6, code=0, given=over)
    assert rows(printed)[-1][2:4] == ["2 of 3", "51.0 ± 1.4"]

    shown = json.loads(
        sweep(code=0, given=("show", re.findall(r"sweep:\w+", printed)[0], "--json"))
    )
    assert shown["scores"][1]["by_seed"] == {"17": 0.5, "19": 0.52}


def test_seeds_alone_show_the_noise(sweep, monkeypatch):
    right = evaluate(lambda beta, seed: 0.3 + LUCK[seed])
    monkeypatch.setattr(sys.modules[__name__], "train", right)
    printed = sweep(*[State.SUCCEEDED] * 3, code=0, given=("sweep", "pocket", *SEEDS))
    assert rows(printed)[-1] == ["math", "pocket", "3", "34.0 ± 5.3", "", ""]


def test_a_sweep_that_is_not_there_is_said_so(sweep):
    printed = sweep(code=2, given=("show", "sweep:nothing"))
    assert "no run has the tag 'sweep:nothing'" in printed


def test_axes_may_be_weights_of_a_mix_and_seeds(mini):
    name = "mix.dataset_mixer_list.math-book"
    load = partial(load_recipe, mini)
    members = sweep_members(load, [f"{name}.weight=0.5,2", "seed=1,2"], [f"{name}.count=null"])
    got = [(m.recipe.mix.dataset_mixer_list[0].weight, m.recipe.seed) for m in members]
    assert got == [(0.5, 1), (0.5, 2), (2, 1), (2, 2)]
    with pytest.raises(RecipeError, match="either count or weight, not both; set the other to nul"):
        sweep_members(load, [f"{name}.weight=0.5,2"], [])


def test_a_value_may_be_a_list_or_a_text_with_commas(mini):
    axes = ["rlvr.skills=[math, chat], [math]", "description='one, two',three"]
    members = sweep_members(partial(load_recipe, mini), axes, [])
    assert [(m.recipe.rlvr.skills, m.recipe.description) for m in members] == [
        (("math", "chat"), "one, two"), (("math", "chat"), "three"),
        (("math",), "one, two"), (("math",), "three"),
    ]  # fmt: skip
    assert members[0].tags == ("rlvr.skills=[math, chat]", "description='one, two'")


def test_a_value_may_be_longer_than_a_tag(sweep, settings):
    long = 200 * "x"
    sweep(*[State.SUCCEEDED] * 2, code=0, over=f"description=short,{long}")
    with Registry(settings.resolved_registry_url) as registry:
        (run,) = registry.list_runs(tag=f"description={long}"[:128])
    assert run.recipe["description"] == long


def test_a_wrong_value_is_named_as_it_was_given(mini, sweep):
    printed = sweep(code=2, over="dpo.beta=1,much")
    assert "error: 'dpo.beta=much': dpo.beta: expected a number; got 'much' (text)" in printed
    for over in (
        "rlvr.skills=[math,chat",
        "rlvr.skills=math]: chat",
        "rlvr.skills=,",
        "rlvr.skills",
    ):
        printed = sweep(code=2, over=over)
        assert f"error: --over {over}: write a field and different values" in printed
    endless = "seed=" + 3000 * "["
    assert f"--over {endless[:80]}: write a field" in sweep(code=2, over=endless)


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
