"""The whole recipe through the command: complete, deterministic, and continued after any end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan_command import Caravan
from caravan_pipelines.graph import evaluated_models, stage_graph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_every_stage_succeeds_and_is_scored(undisturbed, mini):
    recipe = load_recipe(mini)
    shown = undisturbed.show()

    assert shown["state"] == "succeeded"
    assert {s["name"] for s in shown["stages"]} == {node.name for node in stage_graph(recipe)}
    assert all(s["state"] == "succeeded" and s["artifacts"] for s in shown["stages"])
    for model in evaluated_models(recipe):
        for task in recipe.evaluate.tasks:
            found = [s for s in shown["scores"] if (s["stage"], s["task"]) == (model, task.name)]
            assert found, f"no score of {model} on {task.name}"
            assert all(s["low"] <= s["value"] <= s["high"] and s["n"] > 0 for s in found)


def test_the_report_is_one_page_with_pictures(undisturbed):
    (page,) = undisturbed.directory.glob(".caravan/runs/*/report/report.html")
    html = page.read_text()

    assert "data:image/png;base64," in html or "<svg" in html
    assert 'src="http' not in html


def test_a_recipe_that_ran_is_not_run_again(undisturbed, mini):
    before = undisturbed.digests()
    start = time.monotonic()
    done = undisturbed("run", str(mini))

    assert all(stage["reused"] for stage in undisturbed.show()["stages"])
    assert undisturbed.digests() == before
    assert "reused" in done.stdout
    print(f"{len(before)} stages reused in {time.monotonic() - start:.1f} s")


def test_a_run_killed_again_and_again_ends_with_the_same_digests(undisturbed, caravan, mini):
    finished_before: dict[str, float] = {}
    command = ["run", str(mini)]
    for stage in ("base", "sft", "dpo", "rlvr", "evaluate-sft"):
        process = caravan.start(*command)
        caravan.wait_for(lambda: caravan.stage(stage) is not None)  # noqa: B023  # short ones may end
        process.kill()
        process.wait()
        caravan.wait_for(lambda: not caravan.processes(), seconds=60)
        for row in caravan.show()["stages"]:
            if row["state"] == "succeeded":
                finished_before.setdefault(row["name"], row["seconds"])
        command = ["resume", "latest"]
    done = caravan("resume", "latest")

    shown = caravan.show()
    assert shown["state"] == "succeeded", done.stdout
    seconds = {stage["name"]: stage["seconds"] for stage in shown["stages"]}
    assert {name: seconds[name] for name in finished_before} == finished_before, "repeated"
    assert caravan.digests() == undisturbed.digests()


CHOSEN_BY = "rlvr.select={every: 2, tasks: [math, constraints]}"


@pytest.fixture(scope="module")
def selecting(
    undisturbed: Caravan, mini: Path, tmp_path_factory: pytest.TempPathFactory
) -> Caravan:
    """A run that selects RLVR's policy, killed within `rlvr` and within `select`; the stages
    before them were done."""
    caravan = Caravan(tmp_path_factory.mktemp("selecting"))
    shutil.copytree(undisturbed.home, caravan.home)
    killed_once(caravan, ["run", str(mini), "--set", CHOSEN_BY], "checkpoints/step-00000002")
    assert caravan.stage("rlvr").state != State.SUCCEEDED
    killed_once(caravan, ["resume", "latest"], "step-2.json")
    assert caravan.stage("select").state != State.SUCCEEDED
    (caravan.home / "killed").touch()
    caravan("resume", "latest")
    return caravan


def killed_once(caravan: Caravan, command: list[str], written: str) -> None:
    """Kill the command and its steps as soon as a stage has written this.

    At once: `caravan show` would tell it, and a step would see that the command is gone, only when
    so small a stage may be done.
    """
    process = caravan.start(*command)
    caravan.wait_for(
        lambda: any(caravan.home.glob(f"work/*/scratch/{written}")), pause_seconds=0.02
    )
    for pid in caravan.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    caravan.wait_for(lambda: not caravan.processes(), seconds=60)


def test_the_policy_that_scores_best_is_the_one_that_is_evaluated(selecting, undisturbed, tmp_path):
    last = undisturbed.digests()["rlvr"]
    stages = {stage["name"]: stage for stage in selecting.show()["stages"]}
    assert [name for name in stages if not stages[name]["reused"]] == [
        "rlvr", "select", "evaluate-rlvr", "report",
    ]  # fmt: skip
    kept = stages["rlvr"]["artifacts"]
    assert set(kept) == {"step-2", "step-4", "step-5", "rollouts"}
    assert kept["step-5"] == last["model"]
    assert kept["rollouts"] == last["rollouts"]

    selecting("artifact", "get", "latest:select/report", "--to", str(tmp_path / "report"))
    shown = json.loads((tmp_path / "report" / "selection.json").read_text())
    means = {one["step"]: one["mean"] for one in shown["candidates"]}
    assert list(means) == [2, 4, 5]
    assert shown["step"] == max(means, key=means.get)  # the first of them
    taken = stages["select"]["artifacts"]["model"]
    assert taken == kept[f"step-{shown['step']}"]
    evaluated = selecting("artifact", "show", "--json", "latest:evaluate-rlvr/evaluation").stdout
    assert taken in json.loads(evaluated)["made_from"]


def test_a_selection_that_was_killed_does_not_ask_again_whom_it_has_asked(selecting):
    killed = (selecting.home / "killed").stat().st_mtime
    with Registry(f"sqlite:///{selecting.home}/registry.db") as registry:
        run = registry.latest_run()
        select = next(s for s in registry.stage_runs(run.id) if s.node == "select")
        asked = {row.step: row.at.timestamp() for row in registry.metrics(select.id)}
    assert asked[2] < killed < asked[4] < asked[5]


def test_what_was_not_selected_can_go_and_nothing_is_trained_again(selecting, mini):
    run, kept = selecting.show()["run"], selecting.digests()
    taken = kept["select"]["model"]
    gone = [name for name in ("step-2", "step-4", "step-5") if kept["rlvr"][name] != taken]
    selecting("gc", "--candidates", "--older-than", "0")
    assert "was removed" in selecting.refused(
        "model", "export", f"latest:rlvr/{gone[0]}", str(selecting.directory / "gone")
    )
    selecting("model", "export", "latest:select/model", str(selecting.directory / "taken"))

    selecting("run", str(mini), "--set", CHOSEN_BY)
    assert all(stage["reused"] for stage in selecting.show()["stages"])

    # Selected by something else they are needed again, and are the same as they were.
    selecting("run", str(mini), "--set", "rlvr.select={every: 2, tasks: [math]}")
    stages = {stage["name"]: stage for stage in selecting.show()["stages"]}
    assert not stages["rlvr"]["reused"]
    assert stages["rlvr"]["artifacts"] == kept["rlvr"]

    # A selection that nothing disturbs is the one of the run that was killed twice.
    runs = {found["run"] for found in json.loads(selecting("runs", "--json").stdout)}
    with Registry(f"sqlite:///{selecting.home}/registry.db") as registry:
        selecting_runs = [r for r in runs if registry.get_run(r).recipe["rlvr"].get("select")]
    assert run in selecting_runs
    selecting("delete", *selecting_runs, "--yes")
    selecting("gc", "--older-than", "0")
    selecting("run", str(mini), "--set", CHOSEN_BY)
    stages = {stage["name"]: stage for stage in selecting.show()["stages"]}
    assert not stages["select"]["reused"]
    assert selecting.digests() == kept


ENDLESS = "base_model.max_steps=1000000"
"""So that the stage is not done before a command, which takes seconds, has told that it runs."""


def running(caravan: Caravan, stage: str) -> bool:
    found = caravan.stage(stage)
    return found is not None and found.state == State.RUNNING


def test_a_stage_whose_process_is_killed_says_so_in_plain_words(caravan, mini):
    process = caravan.start("run", str(mini), "--set", ENDLESS)
    caravan.wait_for(lambda: running(caravan, "base"))
    for pid in caravan.processes():
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"python" in program and b"kfp.dsl.executor_main" in arguments:
            os.kill(pid, signal.SIGKILL)  # as the kernel does when memory runs out
    output, _ = process.communicate(timeout=120)

    assert caravan.stage("base").state == State.FAILED
    assert "stage base failed: its process ended without a word" in output
    assert "caravan resume" in output
    assert "\x1b" not in output + json.dumps(caravan.show())


def test_ctrl_c_stops_cleanly_and_says_how_to_continue(caravan, mini):
    process = caravan.start("run", str(mini), "--set", ENDLESS)
    caravan.wait_for(lambda: running(caravan, "base"))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)

    shown = caravan.show()
    assert process.returncode != 0
    assert f"caravan resume {shown['run']}" in output
    assert "Traceback" not in output
    assert shown["state"] == "cancelled"
    assert not any(stage["state"] == "running" for stage in shown["stages"])
    assert not caravan.processes()
