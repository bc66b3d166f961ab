"""Why pods end or wait, from what Kubernetes says of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from caravan.cluster.ends import was_interrupted, why_ended, why_waiting
from caravan.registry import Registry, State
from caravan_pipelines.launch import pod_ends

SPEC = {
    "activeDeadlineSeconds": 60,
    "containers": [{"name": "main", "resources": {"limits": {"memory": "512Mi"}}}],
}


def failed(**status: object) -> dict:
    return {"spec": SPEC, "status": {"phase": "Failed", **status}}


def ended(**terminated: object) -> dict:
    sidecar = {"name": "wait", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    main = {"name": "main", "state": {"terminated": terminated}}
    return failed(containerStatuses=[sidecar, main])


def disrupted(status: str = "True", **terminated: object) -> dict:
    condition = {"type": "DisruptionTarget", "status": status, "reason": "PreemptionByScheduler",
                 "message": "preempted by the scheduler"}  # fmt: skip
    pod = ended(**terminated)
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}, condition]
    return pod


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (ended(exitCode=137, reason="OOMKilled"), "killed for memory: it needed more than 512Mi"),
        (ended(exitCode=137, reason="Error"), "killed (SIGKILL)"),
        (ended(exitCode=143, reason="Error"), "stopped"),
        (ended(exitCode=75, reason="Error"), "stopped"),
        (
            ended(exitCode=3, reason="Error", message="disk full"),
            "ended with exit code 3: disk full",
        ),
        (failed(reason="DeadlineExceeded"), "longer than its deadline of 60 s"),
        (failed(reason="Evicted", message="low on resource: memory."), "low on resource: memory."),
        (failed(reason="NodeLost", message="node gone"), "lost with its node: node gone"),
        (failed(reason="Terminated", message="node shutdown"), "shut down: node shutdown"),
        (failed(reason="Preempting"), "for a pod of higher priority: no reason given"),
        (disrupted(exitCode=137, reason="Error"), "taken off its node: preempted by the scheduler"),
        (failed(reason="StartError", message="no such file"), "failed: StartError no such file"),
    ],
)
def test_why_a_pod_failed(pod, words):
    assert words in (why_ended(pod) or "")


def test_a_pod_that_runs_or_succeeded_has_not_failed():
    for phase in ("Pending", "Running", "Succeeded"):
        assert why_ended({"spec": SPEC, "status": {"phase": phase}}) is None


@pytest.mark.parametrize("code", [75, 143])
def test_a_pod_that_was_asked_to_stop_did_not_fail(code):
    assert was_interrupted(ended(exitCode=code, reason="Error"))


def test_memory_and_errors_are_failures_and_evictions_are_not():
    assert not was_interrupted(ended(exitCode=137, reason="OOMKilled"))
    assert not was_interrupted(ended(exitCode=1, reason="Error"))
    assert not was_interrupted(failed(reason="DeadlineExceeded"))
    assert was_interrupted(failed(reason="Evicted"))


@pytest.mark.parametrize(
    "reason",
    ["Terminated", "NodeShutdown", "NodeLost", "Preempting", "UnexpectedAdmissionError"],
)
def test_a_pod_that_its_node_or_the_scheduler_ended_did_not_fail(reason):
    assert was_interrupted(failed(reason=reason))


def test_a_pod_that_kubernetes_says_to_have_disrupted_did_not_fail():
    assert was_interrupted(disrupted(exitCode=137, reason="Error"))
    assert not was_interrupted(disrupted("False", exitCode=137, reason="Error"))


def waiting(reason: str, message: str = "") -> dict:
    state = {"waiting": {"reason": reason, "message": message}}
    status = {"name": "main", "image": "r/x:1", "state": state}
    return {"spec": SPEC, "status": {"phase": "Pending", "containerStatuses": [status]}}


def test_what_a_pod_waits_for():
    assert "image r/x:1 cannot be pulled" in (why_waiting(waiting("ImagePullBackOff")) or "")
    missing = why_waiting(waiting("CreateContainerConfigError", 'secret "caravan" not found'))
    assert 'secret "caravan" not found' in (missing or "")
    assert why_waiting(waiting("ContainerCreating")) is None
    nowhere = {"type": "PodScheduled", "status": "False", "message": "Insufficient nvidia.com/gpu"}
    pod = {"spec": SPEC, "status": {"phase": "Pending", "conditions": [nowhere]}}
    assert why_waiting(pod) == "no node takes it: Insufficient nvidia.com/gpu"


# --- in the registry ----------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path):
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as opened:
        yield opened


@pytest.fixture
def listed(monkeypatch) -> list[dict]:
    """The pods that the cluster's API would list."""
    pods: list[dict] = []
    monkeypatch.setattr(pod_ends, "list_pods", lambda *_: (None, pods))
    return pods


def start(registry: Registry, run_id: str, pod: str) -> None:
    opened = registry.open_stage_run(run_id, "sft", "sft", "key")
    registry.start_stage_run(opened.id, pod=pod)


def named(pod: dict, name: str) -> dict:
    return {**pod, "metadata": {"name": name, "labels": {"caravan.dev/stage": "sft"}}}


def test_what_a_pod_died_of_reaches_its_stage_once(registry, listed):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    run = registry.get_run(run_id)
    start(registry, run_id, "p1")
    listed.append(named(ended(exitCode=137, reason="OOMKilled"), "p1"))
    for _ in range(2):
        pod_ends.record_ends(run, registry, "ns", State.RUNNING)

    (stage,) = registry.stage_runs(run_id)
    assert (stage.state, stage.failures) == (State.FAILED, 1)
    assert (stage.error or "").startswith("sft: killed for memory")

    registry.open_stage_run(run_id, "sft", "sft", "key")  # by the next pod
    pod_ends.record_ends(run, registry, "ns", State.RUNNING)
    (stage,) = registry.stage_runs(run_id)
    assert (stage.state, stage.failures) == (State.PENDING, 1)


@pytest.mark.parametrize("state", [State.RUNNING, State.FAILED, State.CANCELLED])
def test_a_stage_ends_when_its_pod_did(registry, listed, state):
    """Not when somebody asks, which may be days later, and would count as its time."""
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    start(registry, run_id, "p1")
    (stage,) = registry.stage_runs(run_id)
    end = stage.started_at + timedelta(hours=1)
    pod = ended(exitCode=137, reason="OOMKilled", finishedAt=end.isoformat())
    sidecar, _ = pod["status"]["containerStatuses"]
    sidecar["state"]["terminated"]["finishedAt"] = (end + timedelta(seconds=5)).isoformat()
    listed.append(named(pod, "p1"))
    pod_ends.record_ends(registry.get_run(run_id), registry, "ns", state)
    (stage,) = registry.stage_runs(run_id)
    assert stage.finished_at == end + timedelta(seconds=5)


@pytest.mark.parametrize("pod", [failed(reason="NodeLost"), ended(exitCode=137), None])
def test_a_stage_whose_pods_end_nobody_knows_ended_with_its_last_beat(registry, listed, pod):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    start(registry, run_id, "p1")
    (before,) = registry.stage_runs(run_id)
    time.sleep(0.05)
    listed += [named(pod, "p1")] if pod else []
    pod_ends.record_ends(registry.get_run(run_id), registry, "ns", State.FAILED)
    (stage,) = registry.stage_runs(run_id)
    assert stage.state is State.FAILED
    assert stage.finished_at == before.heartbeat_at


def test_only_what_worked_lately_tells_of_an_interruption(registry, listed):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    run = registry.get_run(run_id)
    start(registry, run_id, "p1")

    def interruptions(since: datetime) -> list[str]:
        return pod_ends.interruptions(run, registry, "ns", since)

    assert interruptions(run.created_at) == [f"sft: {pod_ends.LOST}"]
    assert interruptions(datetime.now(UTC)) == []
    listed.append(named(failed(reason="Evicted", message="disk"), "p1"))
    assert interruptions(run.created_at) == ["sft: evicted from its node: disk"]
    (stage,) = registry.stage_runs(run_id)
    assert (stage.state, stage.failures) == (State.RUNNING, 0)

    registry.finish_stage_run(stage.id, State.SUCCEEDED)
    assert interruptions(run.created_at) == ["sft had succeeded: evicted from its node: disk"]
    listed[:] = [named({"spec": SPEC, "status": {"phase": "Succeeded"}}, "p1")]
    assert interruptions(run.created_at) == []


@pytest.mark.parametrize("pod", [failed(reason="Evicted"), ended(exitCode=75), None])
def test_a_stage_whose_pod_was_interrupted_or_lost_waits_for_the_next(registry, listed, pod):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    start(registry, run_id, "p1")
    listed += [named(pod, "p1")] if pod else []
    pod_ends.record_ends(registry.get_run(run_id), registry, "ns", State.RUNNING)

    (stage,) = registry.stage_runs(run_id)
    assert (stage.state, stage.failures) == (State.RUNNING, 0)


def test_a_run_that_is_over_leaves_no_stage_open(registry, listed):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    start(registry, run_id, "p1")
    said = pod_ends.record_ends(registry.get_run(run_id), registry, "ns", State.FAILED)

    (stage,) = registry.stage_runs(run_id)
    assert stage.state is State.FAILED
    assert said == [f"sft: {pod_ends.LOST}"]


def test_what_pods_wait_for_is_told_with_their_stage(registry, listed):
    run_id = registry.create_run({}, name="r", seed=1, recipe_digest="d", backend="kubeflow")
    listed.append(named(waiting("ImagePullBackOff"), "p1"))
    (said,) = pod_ends.record_ends(registry.get_run(run_id), registry, "ns", State.RUNNING)

    assert said.startswith("sft: image r/x:1 cannot be pulled")
