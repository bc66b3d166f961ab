"""Runs that Kubeflow Pipelines gives up because a pod is gone, which it does not try again."""

from __future__ import annotations

import json
import threading
import time

import pytest
from kfp_launching import (
    MINI,
    Waiting,
    launched,
    launched_sweep,
    settings_for,
    wait_for_end,
)
from kfp_pipeline import End, Step
from kfp_recorder import Recorder

from caravan.errors import CaravanError
from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry, RunRow, State
from caravan.settings import Settings
from caravan_pipelines.launch import kfp_client, kfp_state, kubeflow, pod_ends


class Losing(Recorder):
    """Pods of one stage are lost a number of times, while it works or after its `end`."""

    def __init__(self, stage: str, times: int, end: State | None) -> None:
        super().__init__()
        self.stage, self.times, self.end = stage, times, end
        self.registry_url = ""

    def run(self, step: Step, stop: threading.Event) -> End:
        end = super().run(step, stop)
        if step.name.rpartition(".")[2] != self.stage or not self.times:
            return end
        self.times -= 1
        given = json.loads(step.command[step.command.index("--executor_input") + 1])
        with Registry(self.registry_url) as registry:
            run_id = given["inputs"]["parameterValues"]["run"]
            opened = registry.open_stage_run(run_id, self.stage, self.stage, "key")
            registry.start_stage_run(opened.id, pod="gone")
            if self.end is State.FAILED:
                registry.finish_stage_run(opened.id, State.FAILED, error="too large")
            if self.end is State.SUCCEEDED:
                registry.succeed_stage_run(opened.id, {})
        return End(1, why="pod deleted", lost=True)


@pytest.fixture(autouse=True)
def pods(monkeypatch) -> list[dict]:
    """The pods that the cluster's API would list."""
    listed: list[dict] = []
    monkeypatch.setattr(pod_ends, "list_pods", lambda *_: (None, listed))
    return listed


@pytest.fixture
def losing(new_stand_in, tmp_path):
    """A stand-in that loses pods, and settings for it."""

    def new(times: int, *, end: State | None = None, **retries: int):
        executor = Losing("sft", times, end)
        server = new_stand_in(executor)
        profile = json.dumps({"retries": retries})
        settings = settings_for(server, tmp_path, cluster_profile=profile)
        executor.registry_url = settings.resolved_registry_url
        return server, settings

    return new


def names(server) -> list[str]:
    return [run.body["display_name"] for run in server.runs.values()]


def given_up(run_id: str, registry: Registry, settings: Settings) -> int:
    """Waits until Kubeflow Pipelines has given the run up; the number of its next submission."""
    deadline = time.monotonic() + 240
    while not (again := kfp_state.sync(registry.get_run(run_id), registry, settings)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return again


def row(run_id: str, settings: Settings) -> RunRow:
    with Registry(settings.resolved_registry_url) as registry:
        return registry.get_run(run_id)


def test_a_run_whose_pods_are_lost_is_submitted_again_until_it_is_done(losing):
    server, settings = losing(2)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    assert names(server) == [run_id, f"{run_id}-again-1", f"{run_id}-again-2"]
    assert row(run_id, settings).error is None


def test_a_pod_that_is_lost_when_its_stage_has_succeeded_is_an_interruption_too(losing):
    server, settings = losing(1, end=State.SUCCEEDED)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    assert names(server) == [run_id, f"{run_id}-again-1"]


def test_a_run_is_submitted_again_as_often_as_the_profile_says(losing):
    server, settings = losing(99, interruptions=1)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.FAILED
    assert len(server.runs) == 2
    assert row(run_id, settings).error == f"sft: {pod_ends.LOST}"

    kubeflow.resume(row(run_id, settings), settings)  # by somebody: it counts from zero
    assert wait_for_end(run_id, settings) is State.FAILED
    assert len(server.runs) == 4


def test_a_stage_that_failed_keeps_its_failures_and_is_not_submitted_with_too_many(losing):
    server, settings = losing(99, end=State.FAILED, count=1)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.FAILED
    assert len(server.runs) == 2
    with Registry(settings.resolved_registry_url) as registry:
        (stage,) = registry.stage_runs(run_id)
    assert stage.failures == 2
    assert row(run_id, settings).error == "too large"


def test_a_pod_that_failed_by_itself_is_a_failure(losing, pods):
    server, settings = losing(99, count=0)
    killed = {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    pods.append({
        "metadata": {"name": "gone", "labels": {}}, "spec": {},
        "status": {"phase": "Failed", "containerStatuses": [killed]},
    })  # fmt: skip
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.FAILED
    assert len(server.runs) == 1
    assert "killed for memory" in (row(run_id, settings).error or "")


def test_without_a_word_of_the_pods_nothing_is_submitted_again(losing, monkeypatch):
    monkeypatch.setattr(pod_ends, "list_pods", lambda *_: None)
    server, settings = losing(1)
    run_id = launched(settings)

    assert wait_for_end(run_id, settings) is State.FAILED
    assert len(server.runs) == 1


def test_of_two_processes_one_submits_again(losing):
    server, settings = losing(1)
    run_id = launched(settings)
    with Registry(settings.resolved_registry_url) as registry:
        again = given_up(run_id, registry, settings)
        assert "sft: its pod is gone" in (row(run_id, settings).error or "")
        stale, client = registry.get_run(run_id), kfp_client.open_client(settings)
        for _ in range(2):
            kubeflow.submit_again(stale, again, registry, settings, client)

    assert len(server.runs) == 2
    assert wait_for_end(run_id, settings) is State.SUCCEEDED


def test_what_cannot_be_submitted_again_now_is_later(losing, monkeypatch):
    server, settings = losing(1)
    run_id = launched(settings)
    with Registry(settings.resolved_registry_url) as registry, monkeypatch.context() as broken:
        given_up(run_id, registry, settings)
        broken.setattr(kubeflow, "compile_pipeline", refuse)
        with pytest.raises(CaravanError, match="not now"):
            kubeflow.keep_up(registry.get_run(run_id), registry, settings)
    assert row(run_id, settings).state is State.RUNNING

    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    assert len(server.runs) == 2


def refuse(*_: object, **__: object) -> None:
    raise CaravanError("not now")


def test_a_run_that_waits_to_be_submitted_again_can_be_cancelled_and_resumed(losing):
    server, settings = losing(2)
    run_id = launched(settings)
    with Registry(settings.resolved_registry_url) as registry:
        given_up(run_id, registry, settings)
        kubeflow.cancel(registry.get_run(run_id), settings)
        assert registry.get_run(run_id).state is State.CANCELLED
        assert [s.state for s in registry.stage_runs(run_id)] == [State.CANCELLED]

        kubeflow.resume(registry.get_run(run_id), settings)
        given_up(run_id, registry, settings)
        kubeflow.resume(registry.get_run(run_id), settings)  # without a watcher
    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    assert names(server) == [run_id] * 3


def test_what_is_left_of_a_sweep_is_submitted_together(losing):
    server, settings = losing(1)
    runs = launched_sweep(settings, "dpo.beta=1,2,5").run_ids

    deadline = time.monotonic() + 240
    while any(not row(run, settings).state.finished for run in runs):
        assert kubeflow.sync_all(settings) == []
        assert time.monotonic() < deadline
    assert {row(run, settings).state for run in runs} == {State.SUCCEEDED}
    assert len(server.runs) == 2


# --- whoever submits is stopped -----------------------------------------------------------------


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def not_submitted(settings: Settings) -> RunRow:
    """A run whose launcher was killed before it submitted it."""
    recipe = load_recipe(MINI)
    with Registry(settings.resolved_registry_url) as registry:
        return registry.get_run(
            registry.create_run(
                recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
                recipe_digest=recipe_digest(recipe), recipe_dir="", backend="kubeflow",
            )
        )  # fmt: skip


def test_ctrl_c_before_a_run_is_submitted_ends_it(new_stand_in, tmp_path, monkeypatch):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(kubeflow, "compile_pipeline", interrupt)
        with pytest.raises(KeyboardInterrupt):
            launched(settings)
    with Registry(settings.resolved_registry_url) as registry:
        (run,) = registry.list_runs()
    assert run.state is State.FAILED
    assert "interrupted before it reached Kubeflow Pipelines" in (run.error or "")

    kubeflow.resume(run, settings)
    assert wait_for_end(run.id, settings) is State.SUCCEEDED


def test_ctrl_c_while_the_answer_is_awaited_leaves_a_run_that_is_known(
    new_stand_in, tmp_path, monkeypatch
):
    server = new_stand_in(Recorder())
    settings = settings_for(server, tmp_path)
    client = kfp_client.open_client(settings)
    submit = client.run_pipeline
    client.run_pipeline = lambda **given: interrupt(submit(**given))
    with monkeypatch.context() as broken:
        broken.setattr(kubeflow, "open_client", lambda _: client)
        with pytest.raises(KeyboardInterrupt):
            launched_sweep(settings, "dpo.beta=1,2")
    (there,) = server.runs.values()
    with Registry(settings.resolved_registry_url) as registry:
        runs = registry.list_runs()
    assert [run.backend_run_id for run in runs] == [there.id] * 2

    assert {wait_for_end(run.id, settings) for run in runs} == {State.SUCCEEDED}
    assert len(server.runs) == 1


def test_a_run_that_was_never_submitted_fails_when_its_launcher_is_silent(new_stand_in, tmp_path):
    settings = settings_for(new_stand_in(Recorder()), tmp_path)
    run = not_submitted(settings)
    assert kubeflow.sync_all(settings) == []
    assert row(run.id, settings).state is State.PENDING

    time.sleep(0.1)
    stale = settings.model_copy(update={"stale_after_seconds": 0.05})
    assert kubeflow.sync_all(stale) == []
    assert row(run.id, settings).state is State.FAILED
    assert f"caravan resume {run.id}" in (row(run.id, settings).error or "")


def test_a_run_that_was_never_submitted_can_be_cancelled_and_resumed(
    new_stand_in, tmp_path, monkeypatch
):
    settings = settings_for(new_stand_in(Recorder()), tmp_path)
    run = not_submitted(settings)
    with monkeypatch.context() as hasty:
        hasty.setattr(kubeflow, "CANCEL_SECONDS", 0.1)
        with pytest.raises(CaravanError, match=r"is being submitted.* can be cancelled 60 s after"):
            kubeflow.cancel(run, settings)

    stale = settings.model_copy(update={"stale_after_seconds": 0.05})
    kubeflow.cancel(run_seen_with(stale, run.id), stale)
    assert row(run.id, settings).state.finished
    other = not_submitted(settings)
    time.sleep(0.1)
    for run_id in (run.id, other.id):
        kubeflow.resume(run_seen_with(stale, run_id), stale)
        assert wait_for_end(run_id, settings) is State.SUCCEEDED


def run_seen_with(settings: Settings, run_id: str) -> RunRow:
    with Registry(
        settings.resolved_registry_url, stale_after_seconds=settings.stale_after_seconds
    ) as registry:
        return registry.get_run(run_id)


def test_a_run_that_its_watcher_took_and_did_not_submit_is_submitted_by_the_next(losing):
    server, settings = losing(1)
    run_id = launched(settings)
    with Registry(settings.resolved_registry_url) as registry:
        given_up(run_id, registry, settings)
        assert registry.take_backend_run(run_id, row(run_id, settings).backend_run_id)
    kubeflow.sync_all(settings)  # the one that took it may live
    assert names(server) == [run_id]

    time.sleep(0.1)
    kubeflow.sync_all(settings.model_copy(update={"stale_after_seconds": 0.05}))
    assert wait_for_end(run_id, settings) is State.SUCCEEDED
    assert names(server) == [run_id, f"{run_id}-again-1"]


def test_runs_whose_ids_there_were_not_recorded_are_found(new_stand_in, tmp_path):
    """Every run of a sweep by its parameters, behind those of others that are newer."""
    executor = Waiting("for-loop-1.1.pocket-mini-2.sft")
    server = new_stand_in(executor)
    settings = settings_for(server, tmp_path)
    submitted = launched_sweep(settings, "dpo.beta=1,2,5")
    assert executor.reached.wait(240)
    other = launched(settings)
    of_other = server.runs[row(other, settings).backend_run_id]
    server.runs |= {f"other-{i}": of_other for i in range(30)}
    with Registry(settings.resolved_registry_url) as registry:
        for run_id in submitted.run_ids:
            registry.set_backend_run(run_id, "")

        assert kubeflow.sync_all(settings) == []
        for run_id in submitted.run_ids:
            assert registry.get_run(run_id).backend_run_id == submitted.kfp_run_id
        kubeflow.cancel(registry.get_run(submitted.run_id), settings)
        assert registry.get_run(submitted.run_id).state is State.CANCELLED
