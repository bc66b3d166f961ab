"""Recipes on Kubeflow Pipelines: what is submitted, and how it ends.

What happens to runs whose pods are lost is in `test_interruptions.py`.

The backend is the stand-in of `kfp_stand_in.py` behind the real `kfp.Client`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import pytest
from edge import make_certificate, tls_edge
from kfp_launching import (
    MINI,
    Waiting,
    launched,
    launched_sweep,
    launched_sweeps,
    settings_for,
    wait_for_end,
)
from kfp_pipeline import End, Step
from kfp_recorder import Recorder, recorded
from kfp_steps import Processes

from caravan.cluster.profile import ClusterProfile, load_profile
from caravan.errors import BudgetError, CaravanError, RecipeError
from caravan.planning.estimate import plan_recipe
from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry, RunRow, State
from caravan.settings import Settings
from caravan_pipelines.budget import planned_cost
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch import kfp_state, kubeflow
from caravan_pipelines.launch.files import unpack_files
from caravan_pipelines.launch.kfp_client import KubeflowError


def test_the_two_runs_know_each_other(new_stand_in, tmp_path):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path, dashboard_url="https://caravan.example")
    recipe = load_recipe(MINI)
    run_id = launched(settings, recipe, tags=("nightly",))
    (there,) = server.runs.values()
    (experiment,) = server.experiments.values()

    with Registry(settings.resolved_registry_url) as registry:
        run = registry.get_run(run_id)
    assert (run.backend, run.backend_run_id) == ("kubeflow", there.id)
    assert run.owner == "ann"
    assert there.body["display_name"] == run_id
    assert there.body["runtime_config"]["parameters"] == {"run": run_id}
    assert there.body["service_account"] == "caravan-stage"
    assert experiment["display_name"] == recipe.name
    about = there.spec["pipelineInfo"]["description"]
    for part in (run_id, recipe_digest(recipe), "ann", "nightly", "https://caravan.example"):
        assert part in about
    assert wait_for_end(run_id, settings) is State.SUCCEEDED


@pytest.mark.parametrize("way", ["token", "token file", "cookie", "header"])
def test_ways_to_sign_in(new_stand_in, tmp_path, way):
    file = tmp_path / "token"
    file.write_text("tok")
    wanted: dict = {"cookie": "session=1"} if way == "cookie" else {"token": "tok"}
    given = {
        "token": {"kfp_token": "tok"},
        "token file": {"kfp_token_file": str(file)},
        "cookie": {"kfp_cookies": "session=1"},
        "header": {"kfp_headers": "Authorization: Bearer tok\nX-Team: research"},
    }[way]
    server = new_stand_in(Recorder(), **wanted)
    run_id = launched(settings_for(server, tmp_path, **given))

    assert [run.body["display_name"] for run in server.runs.values()] == [run_id]
    if way == "header":
        assert server.requests[-1][2]["X-Team"] == "research"


def test_a_server_behind_tls_is_trusted_by_the_certificates_that_are_named(new_stand_in, tmp_path):
    server = new_stand_in(Recorder(), token="tok")
    certificate = make_certificate(tmp_path, "kfp.example", "127.0.0.1")
    host = server.url.removeprefix("http://")
    with tls_edge(host, certificate) as port:
        given = {"kfp_url": f"https://127.0.0.1:{port}", "kfp_token": "tok"}
        with pytest.raises(KubeflowError, match=r"CERTIFICATE_VERIFY_FAILED.*CARAVAN_KFP_CA_FILE"):
            launched(settings_for(server, tmp_path, **given))
        assert not server.requests

        trusted = given | {"kfp_ca_file": str(certificate.certificate)}
        run_id = launched(settings_for(server, tmp_path, **trusted))
    assert [run.body["display_name"] for run in server.runs.values()] == [run_id]


def test_who_may_not_is_told_what_to_give(new_stand_in, tmp_path):
    server = new_stand_in(Recorder(), token="tok")
    settings = settings_for(server, tmp_path, kfp_token="wrong")
    with pytest.raises(CaravanError, match=r"refuses us \(401\).*CARAVAN_KFP_TOKEN"):
        launched(settings)
    assert not server.runs
    with Registry(settings.resolved_registry_url) as registry:
        assert not registry.list_runs()


def test_a_server_that_is_not_there_is_named(new_stand_in, tmp_path):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path)
    server.close()
    with pytest.raises(CaravanError, match=r"does not answer.*CARAVAN_KFP_URL"):
        launched(settings)


def test_files_that_a_recipe_names_go_along(new_stand_in, tmp_path):
    """Pods see them at the same relative paths, from the store."""
    rows = tmp_path / "own" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    data = load_recipe(MINI).model_dump()
    data["curate"]["sources"][0]["origin"] = {"kind": "files", "paths": ["own/rows.jsonl"]}
    recipe = Recipe.model_validate(data)
    settings = settings_for(new_stand_in(Recorder()), tmp_path / "home")
    run_id = kubeflow.launch(recipe, settings, recipe_dir=tmp_path).run_id

    with Registry(settings.resolved_registry_url) as registry:
        packed = registry.get_run(run_id).recipe_dir
        (kept,) = registry.references()
        assert packed == f"artifact:{registry.artifact(kept).digest}"
    there = unpack_files(packed, settings)
    assert (there / "own" / "rows.jsonl").read_text() == rows.read_text()
    rows.unlink()
    with pytest.raises(CaravanError, match=r"rows\.jsonl"):
        kubeflow.launch(recipe, settings, recipe_dir=tmp_path)


def test_a_cancelled_run_is_continued_by_another_of_the_same_name(new_stand_in, tmp_path):
    executor = Waiting("sft")
    server = new_stand_in(executor)
    settings = settings_for(server, tmp_path)
    run_id = launched(settings)
    assert executor.reached.wait(240)
    with Registry(settings.resolved_registry_url) as registry:
        run = registry.get_run(run_id)
        with pytest.raises(CaravanError, match="caravan cancel"):
            kubeflow.resume(run, settings)
        kubeflow.cancel(run, settings)
        assert registry.get_run(run_id).state is State.CANCELLED

        executor.stage = "nothing"
        again = kubeflow.resume(registry.get_run(run_id), settings)
    assert again.run_id == run_id
    assert len(server.runs) == 2
    assert again.kfp_run_id != run.backend_run_id
    assert wait_for_end(run_id, settings) is State.SUCCEEDED


class Failing(Recorder):
    """Attempts at one stage fail, a number of times."""

    def __init__(self, stage: str, times: int) -> None:
        super().__init__()
        self.stage, self.times = stage, times

    def run(self, step: Step, stop: threading.Event) -> End:
        end = super().run(step, stop)
        if step.name == self.stage and step.attempt < self.times:
            return End(1, why="exit code 1")
        return end


def test_a_pod_that_fails_is_tried_again_as_often_as_the_profile_says(new_stand_in, tmp_path):
    """Also after long pauses: Argo Workflows counts them into the window of all attempts."""
    retries = ClusterProfile().retries
    executor = Failing("sft", retries.count + retries.interruptions)
    settings = settings_for(new_stand_in(executor), tmp_path)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    attempts = [step.attempt for step in executor.steps if step.name == "sft"]
    assert attempts == list(range(retries.count + retries.interruptions + 1))


def test_a_run_that_fails_says_why(new_stand_in, tmp_path):
    settings = settings_for(new_stand_in(Failing("dpo", 99)), tmp_path)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.FAILED
    with Registry(settings.resolved_registry_url) as registry:
        assert "dpo" in (registry.get_run(run_id).error or "")


def test_a_run_that_somebody_deleted_there_fails_and_stops_no_other(new_stand_in, tmp_path):
    server = new_stand_in(Waiting("sft"))
    settings = settings_for(server, tmp_path)
    gone, stays = launched(settings), launched(settings)
    with Registry(settings.resolved_registry_url) as registry:
        deleted = server.runs.pop(registry.get_run(gone).backend_run_id)
        deleted.stop.set()
        server.runs[registry.get_run(stays).backend_run_id].terminate()
        deadline = time.monotonic() + 240
        while not registry.get_run(stays).state.finished and time.monotonic() < deadline:
            assert kubeflow.sync_all(settings) == []
            time.sleep(0.2)

        assert registry.get_run(stays).state is State.CANCELLED
        run = registry.get_run(gone)
        assert run.state is State.FAILED
        assert run.error == (
            f"Kubeflow Pipelines no longer has it; `caravan resume {gone}` submits it again"
        )
        kubeflow.resume(run, settings)
        assert registry.get_run(gone).state is State.RUNNING


def test_trouble_with_one_run_is_told_and_stops_no_other(new_stand_in, tmp_path, monkeypatch):
    settings = settings_for(new_stand_in(Waiting("sft")), tmp_path)
    bad, good = launched(settings), launched(settings)
    asked = []

    def keep_up(run: RunRow, *_: object) -> None:
        asked.append(run.id)
        if run.id == bad:
            raise KubeflowError("500 Internal Server Error")

    monkeypatch.setattr(kubeflow, "keep_up", keep_up)
    assert kubeflow.sync_all(settings) == [f"run {bad}: 500 Internal Server Error"]
    assert set(asked) == {bad, good}


# --- sweeps -------------------------------------------------------------------------------------


def test_the_first_run_of_a_sweep_goes_ahead_and_the_others_follow(new_stand_in, tmp_path):
    recorder = Recorder()
    server = new_stand_in(recorder)
    settings = settings_for(server, tmp_path)
    submitted = launched_sweep(settings, "dpo.beta=1,2,5")

    assert [wait_for_end(run, settings) for run in submitted.run_ids] == [State.SUCCEEDED] * 3
    assert len(server.runs) == 1
    with Registry(settings.resolved_registry_url) as registry:
        runs = [registry.get_run(run_id) for run_id in submitted.run_ids]
    assert [run.recipe["dpo"]["beta"] for run in runs] == [1, 2, 5]
    assert [run.tags for run in runs] == [("dpo.beta=1",), ("dpo.beta=2",), ("dpo.beta=5",)]
    assert {run.backend_run_id for run in runs} == {submitted.kfp_run_id}
    given = [recorder.inputs(step.name)["run"] for step in recorder.steps]
    alone = recorded(load_recipe(MINI), load_profile(settings), tmp_path)
    assert Counter(given) == dict.fromkeys(submitted.run_ids, len(alone.steps))
    first = submitted.run_ids[0]
    assert set(given[: len(alone.steps)]) == {first}


def test_seeds_of_a_sweep_have_a_pipeline_each_since_they_share_no_work(new_stand_in, tmp_path):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path)
    by_seed = launched_sweeps(settings, "dpo.beta=1,2", "seed=17,18")
    with Registry(settings.resolved_registry_url) as registry:
        runs = [[registry.get_run(run_id) for run_id in one.run_ids] for one in by_seed]

    assert [[run.seed for run in of_seed] for of_seed in runs] == [[17, 17], [18, 18]]
    assert [[run.recipe["dpo"]["beta"] for run in of_seed] for of_seed in runs] == [[1, 2]] * 2
    assert len({run.backend_run_id for of_seed in runs for run in of_seed}) == 2


def test_seeds_that_are_submitted_go_on_where_the_next_is_refused(
    new_stand_in, tmp_path, monkeypatch
):
    settings = settings_for(new_stand_in(Recorder()), tmp_path)
    submit = kubeflow._submit

    def submit_one(runs, *args, **kwargs):
        if runs[0].seed == 18:
            raise KubeflowError("no room")
        return submit(runs, *args, **kwargs)

    monkeypatch.setattr(kubeflow, "_submit", submit_one)
    with pytest.raises(KubeflowError, match="no room"):
        launched_sweeps(settings, "seed=17,18")
    with Registry(settings.resolved_registry_url) as registry:
        states = {run.seed: run.state for run in registry.list_runs()}
    assert states == {17: State.RUNNING, 18: State.FAILED}


def test_a_run_of_a_sweep_that_is_hopeless_does_not_end_the_others(new_stand_in, tmp_path):
    executor = Waiting("for-loop-1.1.pocket-mini-2.sft")
    settings = settings_for(new_stand_in(executor), tmp_path)
    first, second, third = launched_sweep(settings, "dpo.beta=1,2,5").run_ids
    assert executor.reached.wait(240)
    with Registry(settings.resolved_registry_url) as registry:
        for node in stage_graph(load_recipe(MINI)):
            succeeded(node.name, first, registry)
        for _ in range(load_profile(settings).retries.count + 1):
            failed = registry.open_stage_run(second, "dpo", "dpo", "k")
            registry.finish_stage_run(failed.id, State.FAILED, error="too large")
        for run_id in (first, second, third):
            kfp_state.sync(registry.get_run(run_id), registry, settings)
        states = [registry.get_run(run_id).state for run_id in (first, second, third)]
        assert states == [State.SUCCEEDED, State.FAILED, State.RUNNING]
        kubeflow.cancel(registry.get_run(third), settings)
        assert registry.get_run(third).state is State.CANCELLED


def succeeded(node: str, run_id: str, registry: Registry) -> None:
    stage = registry.open_stage_run(run_id, node, node, "k")
    registry.finish_stage_run(stage.id, State.SUCCEEDED)


def test_a_run_goes_on_after_its_report_while_its_reward_model_trains(new_stand_in, tmp_path):
    server = new_stand_in(executor := Waiting("reward-model"))
    settings = settings_for(server, tmp_path)
    recipe = load_recipe(MINI, ["rlvr=null"])
    run_id = launched(settings, recipe)
    assert executor.reached.wait(240)
    with Registry(settings.resolved_registry_url) as registry:
        for node in stage_graph(recipe):
            if node.name != "reward-model":
                succeeded(node.name, run_id, registry)
        kfp_state.sync(registry.get_run(run_id), registry, settings)
        assert registry.get_run(run_id).state is State.RUNNING

        succeeded("reward-model", run_id, registry)
        kfp_state.sync(registry.get_run(run_id), registry, settings)
        assert registry.get_run(run_id).state is State.SUCCEEDED


def test_a_sweep_that_its_project_cannot_pay_leaves_no_run_waiting(new_stand_in, tmp_path):
    server = new_stand_in(Recorder())
    priced = settings_for(server, tmp_path, project="atlas", prices={"cpu": 1.0})
    recipe = load_recipe(MINI)
    one = planned_cost(plan_recipe(recipe, stage_graph(recipe), MINI.parent), priced)
    settings = priced.model_copy(update={"budgets": {"atlas": 1.5 * one}})
    with pytest.raises(BudgetError, match="promised to runs that are not finished"):
        launched_sweep(settings, "dpo.beta=1,2,5")

    assert not server.runs
    with Registry(settings.resolved_registry_url) as registry:
        (run,) = registry.list_runs()
    assert run.state is State.FAILED
    assert "atlas" in (run.error or "")


def test_recipes_that_need_other_pods_are_no_sweep(new_stand_in, tmp_path):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path)
    for axis in ("sft.resources.cpus=1,2", "evaluate.shards=1,2"):
        with pytest.raises(CaravanError, match="same stages in the same pods"):
            launched_sweep(settings, axis)
    with pytest.raises(RecipeError, match=r"dpo.beta=1,1: write a field and different values"):
        launched_sweep(settings, "dpo.beta=1,1")
    assert not server.runs


# --- all of it ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_there_makes_what_a_run_here_makes(new_stand_in, tmp_path, undisturbed, command):
    """Every step of the compiled pipeline as a process with nothing but its pod's environment."""
    registry = f"sqlite:///{tmp_path / 'registry.db'}"
    secrets = {"caravan": {"registry-url": registry, "store-url": str(tmp_path / "store")}}
    names = {"registry-url": "CARAVAN_REGISTRY_URL", "store-url": "CARAVAN_STORE_URL"}
    profile = tmp_path / "profile.yaml"
    profile.write_text(json.dumps({"secrets": [{"name": "caravan", "env": names}]}))
    server = new_stand_in(Processes(tmp_path / "kfp", secrets=secrets), token="tok")
    caravan = command(
        tmp_path, CARAVAN_REGISTRY_URL=registry, CARAVAN_STORE_URL=str(tmp_path / "store"),
        CARAVAN_KFP_URL=server.url, CARAVAN_KFP_TOKEN="tok", CARAVAN_CLUSTER_PROFILE=str(profile),
        CARAVAN_DASHBOARD_URL="https://caravan.example",
    )  # fmt: skip
    done = caravan("launch", str(MINI))

    shown = caravan.show()
    (run,) = server.runs.values()
    assert shown["state"] == "succeeded", done.stdout
    assert shown["backend_run_id"] == run.id
    assert caravan.digests() == undisturbed.digests()
    assert all(stage["pod"] for stage in shown["stages"])
    ends = [detail.end for detail in run.pipeline.details if detail.end]
    planned = kubeflow.plan(load_recipe(MINI), ClusterProfile(), Settings())
    assert len(ends) == sum(task.pods for task in planned)
    pages = [end.artifacts["summary"] for end in ends]
    assert any("## evaluate-dpo" in page for page in pages)
    link = f"[Open in Caravan](https://caravan.example/run?run={run.body['display_name']})"
    assert all(link in page for page in pages)
    sft = next(stage for stage in shown["stages"] if stage["name"] == "sft")
    end = next(d.end for d in run.pipeline.details if d.step.name == "sft" and d.end)
    (metrics,) = end.outputs["artifacts"]["metrics"]["artifacts"]
    assert sft["metrics"]
    assert metrics["metadata"] == sft["metrics"]
