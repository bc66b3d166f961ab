"""What pods ended with and what keeps them waiting, brought to the registry in words."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from caravan.cluster.ends import ended_at, was_interrupted, why_ended, why_waiting
from caravan.cluster.logs import list_pods
from caravan.cluster.pod import NODE_LABEL
from caravan.registry import Registry, RunRow, StageRunRow
from caravan.registry.states import State

LOST = "its pod is gone: the node was lost or drained, or somebody deleted it"
NO_WORD = "its pod ended without a word; the cluster's API, which would say why, is not open to us"


def record_ends(run: RunRow, registry: Registry, namespace: str, state: State) -> list[str]:
    """Close the stages whose pods have ended, as of that time, or of their last beat where
    Kubernetes does not tell it: days may have passed. `state` is that of the whole run.

    Returns:
        What a user should know of pods: why they failed (of a run that failed), or what they wait
        for (of one that runs).
    """
    listed = list_pods(run.id, namespace, run.backend_run_id or "")
    pods = listed[1] if listed else None
    by_name = {pod["metadata"]["name"]: pod for pod in pods or []}
    for stage in registry.stage_runs(run.id):
        if stage.state.finished:
            continue
        reason = _end_of(stage, by_name, known=pods is not None, over=state is not State.RUNNING)
        at = ended_at(by_name.get(stage.pod, {})) or stage.heartbeat_at
        if state is State.CANCELLED:
            registry.finish_stage_run(stage.id, State.CANCELLED, at=at)
        elif reason:  # a pod that was only interrupted gets another
            error = f"{stage.node}: {reason}"
            registry.finish_stage_run(stage.id, State.FAILED, error=error, at=at)
    if state is State.FAILED:
        said = [s.error.splitlines()[0] for s in registry.stage_runs(run.id)
                if s.state is State.FAILED and s.error]  # fmt: skip
        return said or [_named(pod, why) for pod in pods or [] if (why := why_ended(pod))]
    if state is State.RUNNING:
        return [_named(pod, why) for pod in pods or [] if (why := why_waiting(pod))]
    return []


def interruptions(run: RunRow, registry: Registry, namespace: str, since: datetime) -> list[str]:
    """What has interrupted the stages that worked `since` a time, of a run whose backend has given
    it up. Those whose pods failed are closed, the others stay open.

    A stage may also have succeeded and then lost its pod, before that could say so.

    None, where pods cannot be read: one that was lost is then like one that was killed for memory.
    """
    listed = list_pods(run.id, namespace, run.backend_run_id or "")
    if listed is None:
        return []
    record_ends(run, registry, namespace, State.RUNNING)
    pods = {pod["metadata"]["name"]: pod for pod in listed[1]}
    found, late = [], []
    for stage in registry.stage_runs(run.id):
        if (stage.heartbeat_at or stage.created_at) < since:
            continue
        if stage.state is State.SUCCEEDED:
            pod = pods.get(stage.pod)
            if stage.pod and (pod is None or why_ended(pod)):
                late.append(f"{stage.node} had succeeded: {why_ended(pod) if pod else LOST}")
            continue
        if stage.state.finished:
            why = (stage.error or stage.state).splitlines()[0]
        else:
            why = f"{stage.node}: {why_ended(pods.get(stage.pod, {})) or LOST}"
        found.append(why)
    return found or late


def _end_of(
    stage: StageRunRow, pods: dict[str, dict[str, Any]], *, known: bool, over: bool
) -> str | None:
    """Why an unfinished stage will not be finished by its pod; None while it may be."""
    pod = pods.get(stage.pod)
    if pod is not None:
        if was_interrupted(pod) and not over:
            return None
        return why_ended(pod) or (NO_WORD if over else None)
    return (LOST if known and stage.pod else NO_WORD) if over else None


def _named(pod: dict[str, Any], why: str) -> str:
    return f"{pod['metadata'].get('labels', {}).get(NODE_LABEL, pod['metadata']['name'])}: {why}"
