"""Runs that Kubeflow Pipelines gives up because a pod is gone, which it does not try again."""

from __future__ import annotations

import json
import threading
import time

import pytest
from kfp_launching import launched, launched_sweep, settings_for, wait_for_end
from kfp_pipeline import End, Step
from kfp_recorder import Recorder

from caravan.errors import CaravanError
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
    deadline = time.monotonic() + 60
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

    deadline = time.monotonic() + 60
    while any(not row(run, settings).state.finished for run in runs):
        assert kubeflow.sync_all(settings) == []
        assert time.monotonic() < deadline
    assert {row(run, settings).state for run in runs} == {State.SUCCEEDED}
    assert len(server.runs) == 2
