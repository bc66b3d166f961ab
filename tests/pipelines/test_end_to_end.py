"""The whole recipe through the command: complete, deterministic, and continued after any end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from caravan.recipe.io import load_recipe
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


def test_the_policy_that_scores_best_is_the_one_that_is_evaluated(
    undisturbed, caravan, mini, tmp_path
):
    shutil.copytree(undisturbed.home, caravan.home)  # all stages up to RLVR are done
    before = undisturbed.show()
    last = next(s for s in before["stages"] if s["name"] == "rlvr")["artifacts"]
    chosen_by = "rlvr.select={every: 2, tasks: [math, constraints]}"
    process = caravan.start("run", str(mini), "--set", chosen_by)
    caravan.wait_for(lambda: caravan.show()["run"] != before["run"])
    caravan.wait_for(lambda: (caravan.stage("rlvr") or {}).get("done", 0) >= 3)
    process.kill()
    process.wait()
    caravan.wait_for(lambda: not caravan.processes(), seconds=60)
    caravan("resume", "latest")

    stages = {stage["name"]: stage for stage in caravan.show()["stages"]}
    assert [name for name in stages if not stages[name]["reused"]] == [
        "rlvr", "select", "evaluate-rlvr", "report",
    ]  # fmt: skip
    kept = stages["rlvr"]["artifacts"]
    assert set(kept) == {"step-2", "step-4", "step-5", "rollouts"}
    assert kept["step-5"] == last["model"]
    assert kept["rollouts"] == last["rollouts"]

    caravan("artifact", "get", "latest:select/report", "--to", str(tmp_path / "report"))
    shown = json.loads((tmp_path / "report" / "selection.json").read_text())
    means = {one["step"]: one["mean"] for one in shown["candidates"]}
    assert list(means) == [2, 4, 5]
    assert shown["step"] == max(means, key=means.get)  # the first of them
    taken = stages["select"]["artifacts"]["model"]
    assert taken == kept[f"step-{shown['step']}"]
    evaluated = caravan("artifact", "show", "--json", "latest:evaluate-rlvr/evaluation").stdout
    assert taken in json.loads(evaluated)["made_from"]


def test_a_stage_whose_process_is_killed_says_so_in_plain_words(caravan, mini):
    process = caravan.start("run", str(mini))
    caravan.wait_for(lambda: (caravan.stage("base") or {}).get("state") == "running")
    for pid in caravan.processes():
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"python" in program and b"kfp.dsl.executor_main" in arguments:
            os.kill(pid, signal.SIGKILL)  # as the kernel does when memory runs out
    output, _ = process.communicate(timeout=120)

    assert caravan.stage("base")["state"] == "failed"
    assert "stage base failed: its process ended without a word" in output
    assert "caravan resume" in output
    assert "\x1b" not in output + json.dumps(caravan.show())


def test_ctrl_c_stops_cleanly_and_says_how_to_continue(caravan, mini):
    process = caravan.start("run", str(mini))
    caravan.wait_for(lambda: (caravan.stage("base") or {}).get("state") == "running")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)

    shown = caravan.show()
    assert process.returncode != 0
    assert f"caravan resume {shown['run']}" in output
    assert "Traceback" not in output
    assert shown["state"] == "cancelled"
    assert not any(stage["state"] == "running" for stage in shown["stages"])
    assert not caravan.processes()
