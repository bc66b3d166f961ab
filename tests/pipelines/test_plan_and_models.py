"""What the plan of a recipe is worth, and what leaves a run: seen on a run that really ran."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_plan_is_compared_with_the_run(undisturbed, mini):
    done = undisturbed("plan", str(mini), "--compare", "latest", "--json")
    compared = json.loads(done.stdout)["comparison"]
    stages = {stage["node"]: stage for stage in compared["stages"]}

    assert all(stage["seconds"] > 0 for stage in stages.values())
    # Tests share their machine with others: the plan's seconds are those of one that is free.
    metrics = [stage["metrics"] for stage in undisturbed.show()["stages"]]
    assert 0.1 < compared["planned_seconds"] / sum(m["perf/cpu_seconds"] for m in metrics) < 10
    for node in ("sft", "dpo", "rlvr"):
        assert 0.4 < stages[node]["memory_ratio"] < 2.5
    shown = undisturbed("plan", str(mini), "--compare", "latest").stdout
    assert "planned / measured" in shown
    other = undisturbed("plan", "pocket", "--compare", "latest", check=False)
    assert other.returncode == 2
    assert "is of recipe pocket-mini" in other.stderr


def test_a_model_of_a_run_is_exported_with_the_scores_of_its_evaluation(undisturbed, tmp_path):
    undisturbed("model", "export", "latest:rlvr/model", str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text().replace("\\", "")
    shown = undisturbed.show()

    scores = [score for score in shown["scores"] if score["stage"] == "rlvr"]
    assert scores
    for score in scores:
        scale, digits = (1, 2) if score["metric"] == "mean_rating" else (100, 1)
        value = f"{scale * score['value']:.{digits}f}"
        row = f"| {score['task']} | {score['suite']} | {score['metric']} | {value} |"
        assert row in card
    assert shown["recipe_digest"] in card
    assert "base → sft" in card


def test_models_of_a_run_are_merged(undisturbed, tmp_path):
    ingredients = ["latest:sft/model:0.5", "latest:dpo/model:0.5"]
    undisturbed("model", "merge", *ingredients, "--out", str(tmp_path / "soup"))
    assert (tmp_path / "soup" / "model.safetensors").stat().st_size > 100_000
    assert "another" in undisturbed.refused(
        "model", "merge", "latest:sft/model", "latest:reward-model/model", "--out",
        str(tmp_path / "no"),
    )  # fmt: skip
