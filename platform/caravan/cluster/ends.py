"""Why a pod ended or does not start, in words that say what to do."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
CONTINUE = os.EX_TEMPFAIL
"""Exit code of a stage that was stopped with everything kept: started again, it continues."""
STOPPED = "stopped: the run was cancelled, or its node drained"
SIGNALS = {137: "killed (SIGKILL)", 143: STOPPED, CONTINUE: STOPPED}
ASKED = (CONTINUE, 143)
"""Exit codes of a stage that was asked to stop."""
TAKEN = {
    "Evicted": "evicted from its node",
    "Preempting": "evicted for a pod of higher priority",
    "Terminated": "ended with its node, which was shut down",
    "NodeShutdown": "ended with its node, which was shut down",
    "NodeLost": "lost with its node",
    "UnexpectedAdmissionError": "refused by its node, which had too little for it after all",
}
"""Reasons of pods that the cluster has ended, not their stage."""
MAIN = "main"
"""Kubeflow Pipelines' name of the container that runs the step."""


def why_ended(pod: dict[str, Any]) -> str | None:
    """What ended a failed pod; None for one that runs, waits or succeeded.

    `pod` is a Pod as the Kubernetes API writes it.
    """
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    message = status.get("message", "").strip()
    if words := TAKEN.get(status.get("reason", "")):
        return f"{words}: {message or 'no reason given'}"
    if status.get("reason") == "DeadlineExceeded":
        seconds = pod["spec"].get("activeDeadlineSeconds")
        return f"ran longer than its deadline of {seconds} s; raise resources.deadline_hours"
    if disruption := _disruption(status):
        why = disruption.get("message") or disruption.get("reason") or "no reason given"
        return f"taken off its node: {why}"
    for container in _containers(status):
        ended = container.get("state", {}).get("terminated")
        if ended and ended.get("reason") == "OOMKilled":
            limit = _memory_limit(pod, container["name"])
            return f"killed for memory: it needed more than {limit}; raise resources.memory_gib"
        if ended and ended.get("exitCode"):
            code = ended["exitCode"]
            said = (ended.get("message") or "").strip()
            words = SIGNALS.get(code, f"ended with exit code {code}")
            return f"{words}: {said}" if said and code not in SIGNALS else words
    return f"failed: {status.get('reason') or 'no reason given'} {message}".strip()


def ended_at(pod: dict[str, Any]) -> datetime | None:
    """When the last container of a pod ended; None where one runs or Kubernetes does not say, as
    of a pod that was lost with its node."""
    ends = []
    for container in _containers(pod.get("status", {})):
        ended = container.get("state", {}).get("terminated") or {}
        if not (at := ended.get("finishedAt")):
            return None
        ends.append(datetime.fromisoformat(at))
    return max(ends, default=None)


def was_interrupted(pod: dict[str, Any]) -> bool:
    """Whether a pod ended through no fault of its stage: taken by the cluster, or asked to stop."""
    status = pod.get("status", {})
    ended = [c.get("state", {}).get("terminated") or {} for c in _containers(status)]
    asked = any(e.get("exitCode") in ASKED for e in ended)
    return asked or status.get("reason") in TAKEN or _disruption(status) is not None


def _disruption(status: dict[str, Any]) -> dict[str, Any] | None:
    """The condition by which Kubernetes tells that it takes a pod away."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            found: dict[str, Any] = condition
            return found
    return None


def why_waiting(pod: dict[str, Any]) -> str | None:
    """What keeps a pod from starting, where that needs somebody's help; else None."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return None
    for container in _containers(status):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason"), waiting.get("message", "")
        if reason in IMAGE_REASONS:
            return (
                f"image {container['image']} cannot be pulled ({reason}: {message}); check "
                "`images` of the cluster profile and its pull secrets"
            )
        if reason in CONFIG_REASONS:
            return f"its container cannot be made ({reason}: {message}); check the cluster profile"
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"no node takes it: {condition.get('message', condition.get('reason', ''))}"
    return None


def _containers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The step's container first; others may have ended because it did."""
    found = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    return sorted(found, key=lambda container: container["name"] != MAIN)


def _memory_limit(pod: dict[str, Any], name: str) -> str:
    for container in pod["spec"].get("containers", []):
        if container["name"] == name:
            return str(
                container.get("resources", {}).get("limits", {}).get("memory", "its node has")
            )
    return "its limit"
