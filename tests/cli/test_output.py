"""What the command prints on a narrow terminal: what is copied out of it stays whole."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from caravan.recipe.io import load_recipe
from caravan.registry import Registry, ScoreRow, State
from caravan.settings import Settings
from caravan.stages.context import Score
from caravan.store import Artifact
from caravan_command import command_here
from caravan_pipelines.cli import run as run_command
from caravan_pipelines.cli.common import read_recipe
from caravan_pipelines.cli.tables import comparisons_table, main_scores, print_table, scores_table
from caravan_pipelines.launch import local

ERROR = (
    "sft: row 3 of rows.jsonl has no messages; correct or remove it\n\nTraceback ...\nKeyError: 3"
)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / ("a-directory-with-a-long-name-" * 3))


@pytest.fixture
def registry(settings, mini):
    settings.home.mkdir()
    with Registry(settings.resolved_registry_url) as registry:
        yield registry


@pytest.fixture
def failed(registry, settings, mini):
    """A run whose stage `sft` has failed."""
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    stage = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(stage.id, {})
    registry.finish_stage_run(stage.id, State.FAILED, error=ERROR)
    registry.update_run_state(run_id, State.FAILED, error="a step failed")
    return run_id


@pytest.fixture
def command(settings, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    return command_here(settings, monkeypatch, capsys)


def test_a_failed_run_ends_with_its_advice_and_hints_on_one_line(
    failed, registry, settings, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "50")
    log = local.run_dir(settings, failed) / "log.txt"
    started = local.LocalRun(failed, SimpleNamespace(wait=lambda: 1), log)
    with pytest.raises(SystemExit, match="1"):
        run_command._finish(failed, registry, settings, started, Console())

    lines = capsys.readouterr().out.splitlines()
    assert f"stage sft failed: {ERROR.partition(chr(10))[0]}" in lines
    assert f"run {failed} failed; its log is {log}" in lines
    assert f"finished stages are kept; continue with: caravan resume {failed}" in lines
    assert "KeyError" not in "".join(lines)


def test_what_is_no_number_is_null_in_json(failed, registry, command):
    (stage,) = registry.stage_runs(failed)
    registry.log_metrics(stage.id, 1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    registry.add_scores(stage.id, [Score("math", "accuracy", math.nan, 0, 1, 2)])

    (listed,) = json.loads(command("runs", "--json"), parse_constant=pytest.fail)
    shown = json.loads(command("show", failed, "--json"), parse_constant=pytest.fail)
    assert [score["value"] for score in listed["scores"]] == [None]
    metrics = shown["stages"][0]["metrics"]
    assert (metrics["loss"], metrics["grad_norm"], metrics["lr"]) == (None, None, 0.5)


def test_show_tells_the_error_and_where_its_traceback_is(failed, command):
    lines = command("show", failed).splitlines()

    assert f"sft: {ERROR.partition(chr(10))[0]}" in lines
    assert f"traceback: caravan logs {failed}" in lines
    assert "KeyError" not in "".join(lines)
    assert json.loads(command("show", failed, "--json"))["stages"][0]["error"] == ERROR


def test_show_has_the_last_numbers_of_a_stage_that_trains(registry, settings, mini, command):
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    stage = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(stage.id, {})
    registry.heartbeat(stage.id, (2, 18))
    for step, loss in ((1, 3.0), (2, 2.5)):
        registry.log_metrics(stage.id, step, {"loss": loss, "grad_norm": 1.0})
    registry.log_metrics(stage.id, 1, {"validation/loss": 3.25})

    assert "sft: step 2 of 18  loss 2.5  held-out loss 3.25" in command("show", run_id)
    (shown,) = json.loads(command("show", run_id, "--json"))["stages"]
    assert shown["metrics"] == {"loss": 2.5, "grad_norm": 1.0}
    assert (shown["done"], shown["total"]) == (2, 18)


def test_show_tells_which_policy_was_selected(registry, settings, mini, command):
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    policies = {name: Artifact(name[-1] * 64, "model", 1, 1) for name in ("step-5", "step-10")}
    for policy in policies.values():
        registry.add_artifact(policy, "file:///somewhere")
    stage = registry.open_stage_run(run_id, "select", "select", "k" * 64)
    registry.start_stage_run(stage.id, {name: p.digest for name, p in policies.items()})
    registry.log_metrics(stage.id, 5, {"math": 0.5, "mean": 0.5})
    assert "selected step" not in command("show", run_id)
    registry.finish_stage_run(stage.id, State.SUCCEEDED, metrics={"step": 5.0, "mean": 0.5})
    assert "select: selected step 5 of 10\n" in command("show", run_id)


def test_show_lists_the_policies_along_the_way_by_their_steps(registry, settings, mini, command):
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    stage = registry.open_stage_run(run_id, "rlvr", "rlvr", "k" * 64)
    registry.start_stage_run(stage.id, {})
    made = {f"step-{i}": (Artifact(f"{i:064}", "model", 1, 1), "file:///x") for i in (100, 40, 60)}
    registry.succeed_stage_run(stage.id, made)
    assert re.findall(r"step-\d+", command("show", run_id)) == ["step-40", "step-60", "step-100"]


def test_show_tells_which_policy_has_the_lowest_held_out_loss(registry, settings, mini, command):
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    stage = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(stage.id, {})
    registry.heartbeat(stage.id, progress=(12, 12))
    registry.log_metrics(stage.id, 12, {"loss": 2.5, "validation/loss": 3.5})
    registry.finish_stage_run(stage.id, State.SUCCEEDED, metrics={"selected_step": 8.0})
    shown = command("show", run_id)
    assert re.search(r"sft: step 12 of 12  loss 2.5 .*selected step 8 of 12\n", shown), shown


def test_a_run_that_has_succeeded_is_not_resumed(registry, settings, mini, command):
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    registry.update_run_state(run_id, State.SUCCEEDED)

    assert f"run {run_id} has succeeded: nothing to resume" in command("resume", run_id)
    assert not local.run_dir(settings, run_id).exists()


def test_a_run_can_be_shown_compared_and_repeated_from_its_id(registry, settings, mini, command):
    changed = load_recipe(mini, ["sft.learning_rate=3e-4"])
    run_id = local.create_run(changed, settings, recipe_dir=mini.parent)

    assert "learning_rate: 0.0003" in command("recipe", "show", run_id)
    assert f"{run_id}: valid, 22 stages" in command("recipe", "validate", run_id)
    differences = command("recipe", "diff", str(mini), run_id)
    assert [line.split()[1] for line in differences.splitlines() if line.startswith("│")] == [
        "sft.learning_rate"
    ]
    shown = json.loads(command("show", run_id, "--json"))
    assert shown["effective_recipe"]["sft"]["learning_rate"] == 3e-4
    assert shown["caravan_version"].startswith("0.")
    assert "nor a run: no run 'nope'" in command("recipe", "show", "nope", code=2)

    recipe, directory = read_recipe(Path(run_id), ["seed=5"])
    assert (recipe, directory) == (changed.model_copy(update={"seed": 5}), mini.parent)


def test_what_is_piped_is_neither_cut_nor_broken(registry, settings, mini, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    differences = command("recipe", "diff", "pocket", str(mini))
    assert "│ mix.dataset_mixer_list[math-book].count " in differences
    assert "…" not in differences
    assert f"ok       work directory: {settings.home}, " in command("doctor")


def test_ids_of_runs_are_whole_in_a_list_of_long_tags(registry, settings, mini, command):
    tags = tuple(f"a-long-tag-{i}" for i in range(8))
    run_id = local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent, tags=tags)
    printed = command("runs")

    assert f" {run_id} " in printed
    assert "…" not in printed


def test_runs_are_found_by_state_recipe_and_tag_and_tagged(registry, settings, mini, command):
    recipe = load_recipe(mini)
    good, bad = (local.create_run(recipe, settings, recipe_dir=mini.parent) for _ in range(2))
    for model, value in (("sft", 0.25), ("rlvr", 0.5)):
        stage = registry.open_stage_run(good, f"evaluate-{model}", "evaluate", model)
        math = Score("math", "accuracy", value, 0.2, 0.6, 40)
        chat = Score("chat", "mean_rating", 4.0, 3.0, 5.0, 40)
        registry.succeed_stage_run(stage.id, {}, scores=[math, chat])
    registry.update_run_state(good, State.SUCCEEDED)
    registry.update_run_state(bad, State.FAILED)

    def found(*options):
        return {run["run"] for run in json.loads(command("runs", "--json", *options))}

    assert found("--state", "failed") == {bad}
    assert "there are pending, running, succeeded" in command("runs", "--state", "x", code=2)
    assert (found("--recipe", recipe.name), found("--recipe", "other")) == ({good, bad}, set())
    assert f"{good}: a b" in command("tag", good, "a", "b")
    assert (found("--tag", "b"), found("--tag", "c")) == ({good}, set())
    assert command("tag", good, "--remove", "a") == f"{good}: b\n"
    assert "has no tag a" in command("tag", good, "--remove", "a", code=2)
    assert " rlvr 50.0 " in command("runs", "--state", "succeeded").replace("\n", " ")
    (shown,) = json.loads(command("runs", "--json", "--tag", "b"))
    assert (shown["recipe"], shown["state"], len(shown["scores"])) == (recipe.name, "succeeded", 4)
    assert found("--limit", "1000000") == {good, bad}
    for many in (0, 2**63):
        assert "Invalid value for '--limit'" in command("runs", "--limit", str(many), code=2)
    assert command("runs", "--tag", "") == "no run is so: caravan runs lists all\n"


@pytest.mark.parametrize("group", [(), ("recipe",), ("artifact",), ("model",), ("data",)])
def test_help_cuts_no_command_off(command, group):
    assert "..." not in command(*group, "--help").partition("Commands:")[2]


def test_the_version_names_the_commit_of_a_checkout(command):
    assert re.fullmatch(r"caravan \d+\.\d+\.\d+(\+[0-9a-f]+(-dirty)?)?\n", command("--version"))


def test_names_of_metrics_go_on_in_the_next_line(capsys):
    metric, models = "prompt_level_strict_acc_of_everything", ["base", "sft", "dpo", "rlvr"]
    scores = [
        ScoreRow(i, i, "r", f"evaluate-{model}", "evaluate", "constraints", metric, "dev",
                 0.5, 0.4, 0.6, 9)
        for i, model in enumerate(models)
    ]  # fmt: skip
    Console(width=60).print(scores_table(scores))
    printed = capsys.readouterr().out
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]

    assert "".join(row[2].strip() for row in rows) == metric
    assert "…" not in printed


def test_a_score_says_what_its_replies_lack_and_a_difference_that_there_was_none():
    def row(task, metric, stage, n, **values):
        zeros = {"value": 0.0, "low": 0.0, "high": 0.0} | values
        return ScoreRow(
            1, 1, "r", stage, stage.partition("-")[0], task, metric, "dev", n=n, **zeros
        )

    scores = [
        row("gsm", "accuracy", "evaluate-sft", 40, high=0.088, truncated=1.0),
        row("few", "accuracy", "evaluate-sft", 40, high=0.088, truncated=0.1, too_long=0.3),
        row("code", "pass", "evaluate-sft", 12, value=1.0, low=0.8, high=1.0, undecided=0.7),
        row("gsm:sft>base", "difference", "report", 40),
        row("few:sft>base", "difference", "report", 40, value=-1.0, low=-1.0, high=-1.0),
    ]
    models, changes = Console(file=io.StringIO()), Console(file=io.StringIO())
    print_table(models, scores_table(scores))
    print_table(changes, comparisons_table(scores))
    assert "0.0 [0.0, 8.8] (cut off: 100 %)" in models.file.getvalue()
    assert "0.0 [0.0, 8.8] (prompt too long: 30 %)" in models.file.getvalue()
    assert "100.0 [80.0, 100.0] (undecided: 70 %)" in models.file.getvalue()
    assert main_scores(scores) == {"r": "sft 33.3 (cut off: 37 %, undecided: 23 %)"}
    assert "no difference on any of the 40" in changes.file.getvalue()
    assert "-100.0 on each of the 40" in changes.file.getvalue()
    assert "[" not in changes.file.getvalue()


def test_a_dry_run_counts_the_pods_and_what_starting_them_takes(command):
    printed = " ".join(command("launch", "pocket", "--dry-run").split())
    assert printed.endswith(
        "22 stages in 17 pods; about 20 s each to start, 5 min 40 s in all "
        "(1 min 40 s saved by sharing pods)"
    )
    faster = '{"pod_overhead_seconds": 7}'
    printed = " ".join(command("launch", "pocket", "--dry-run", cluster_profile=faster).split())
    assert "about 7 s each to start, 1 min 59 s in all (35 s saved" in printed


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_list_of_no_runs_is_refused(command, limit):
    assert "--limit" in command("runs", "--limit", limit, code=2)


def test_a_gpu_that_is_not_known_is_refused_also_where_no_stage_uses_one(mini, command):
    assert "GPU-hours" not in command("plan", str(mini), "--gpu", "h100")
    assert "'zz' is not in the table of devices" in command(
        "plan", str(mini), "--gpu", "zz", code=2
    )


def test_what_is_no_terminal_gets_tables_whole():
    """`caravan show latest | grep WORD` finds what is there."""
    table = Table("metric", "value")
    table.add_row("prompt_level_strict_acc", "84.2 [82.0, 86.1]")
    piped = Console(file=io.StringIO(), width=20)
    print_table(piped, table)
    assert "prompt_level_strict_acc" in piped.file.getvalue()

    terminal = Console(file=io.StringIO(), width=20, force_terminal=True)
    print_table(terminal, table)
    assert "prompt_level_strict_acc" not in terminal.file.getvalue()
