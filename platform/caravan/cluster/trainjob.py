"""A training stage on several nodes: a TrainJob of Kubeflow Trainer v2.

The pod of the stage's step makes the job, tells how it goes, and removes it at the end. Every node
of the job runs the same command; the first one keeps the stage's books, as on one node. A step
whose pod was restarted finds the job by its name and goes on waiting for it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from caravan.cluster.api import as_dict
from caravan.cluster.ends import why_ended, why_waiting
from caravan.cluster.logs import read_log
from caravan.cluster.pod import (
    CACHE_DIR,
    NODE_LABEL,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    RUN_LABEL,
    TEMPORARY_DIR,
    TRUST_DIR,
    WORK_DIR,
    Pod,
    label_value,
    placement,
    pod_environment,
    pod_of,
)
from caravan.cluster.profile import ClusterProfile
from caravan.errors import CaravanError, StageError
from caravan.recipe import Resources

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
MANAGER = "caravan.dev/launcher"
ENDS = ("Complete", "Failed")
"""Conditions of a job that has ended."""
STEP, CONTAINER = "node", "node"
"""Of the runtime: the replicated job of the trainer, and its container."""
POLL_SECONDS = 5.0
AWAY_SECONDS = 600.0
"""How long the cluster's API may be away before the wait is given up."""
ANSWER_SECONDS = 30.0
"""How long one answer of it may take."""

T = TypeVar("T")


class ApiAwayError(CaravanError):
    """The cluster's API has not answered for long; the job goes on without us."""


class JobFailedError(StageError):
    """A job has failed, at a time that may be long before anybody asked."""

    def __init__(self, message: str, at: datetime | None) -> None:
        super().__init__(message)
        self.at = at


# --- the job as an object -----------------------------------------------------------------------


def job_name(run_id: str, node: str) -> str:
    """The same for every attempt at a stage of a run, so that a running job is found again."""
    digest = hashlib.sha256(f"{run_id}/{node}".encode()).hexdigest()[:10]
    return f"{re.sub('[^a-z0-9-]+', '-', node.lower())[:30].strip('-')}-{digest}"


def train_job(
    run_id: str,
    node: str,
    command: Sequence[str],
    resources: Resources,
    profile: ClusterProfile,
    *,
    dashboard_url: str = "",
) -> dict[str, Any]:
    """The TrainJob of a stage, as the API takes it."""
    pod = pod_of(resources, profile)
    labels = {RUN_LABEL: label_value(run_id), NODE_LABEL: label_value(node)}
    queued = {QUEUE_LABEL: pod.queue} if pod.queue else {}
    urgent = {PRIORITY_LABEL: profile.priority} if profile.priority else {}
    limits = {"cpu": pod.cpu, "memory": pod.memory}
    if pod.gpus:
        limits[pod.gpu_resource] = str(pod.gpus)
    spec: dict[str, Any] = {
        "runtimeRef": {
            "apiGroup": GROUP, "kind": "TrainingRuntime", "name": profile.trainer.runtime,
        },
        "trainer": {
            "image": pod.image,
            "command": list(command),
            "numNodes": resources.nodes,
            "numProcPerNode": pod.gpus or resources.processes,
            "resourcesPerNode": {"limits": limits, "requests": dict(limits)},
            "env": _environment(profile, dashboard_url),
        },
        "runtimePatches": [_patch(pod, profile, labels)],
    }  # fmt: skip
    if pod.deadline_seconds:
        spec["activeDeadlineSeconds"] = pod.deadline_seconds
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(run_id, node),
            "namespace": profile.namespace,
            "labels": labels | queued | urgent,
        },
        "spec": spec,
    }


def _environment(profile: ClusterProfile, dashboard_url: str) -> list[dict[str, Any]]:
    plain = pod_environment(profile, dashboard_url)
    found: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in plain.items()]
    for kind, sources in (
        ("secretKeyRef", profile.secrets),
        ("configMapKeyRef", profile.config_maps),
    ):
        for source in sources:
            for key, variable in source.env.items():
                reference = {kind: {"name": source.name, "key": key}}
                found.append({"name": variable, "valueFrom": reference})
    name = {"fieldRef": {"fieldPath": "metadata.name"}}
    return [*found, {"name": "CARAVAN_POD_NAME", "valueFrom": name}]


def _patch(pod: Pod, profile: ClusterProfile, labels: Mapping[str, str]) -> dict[str, Any]:
    """What the runtime does not know: where the pods go, and their volumes."""
    volumes, mounts = _volumes(pod, profile)
    spec: dict[str, Any] = {
        "serviceAccountName": profile.service_account,
        "volumes": volumes,
        "containers": [{"name": CONTAINER, "volumeMounts": mounts}],
    }
    spec |= placement(pod, profile)
    template = {"metadata": {"labels": dict(labels)}, "spec": spec}
    job = {"name": STEP, "template": {"spec": {"template": template}}}
    jobs = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": jobs}


def _volumes(
    pod: Pod, profile: ClusterProfile
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, path: str, source: dict[str, Any], sub_path: str = "") -> None:
        volumes.append({"name": name, **source})
        mounts.append(
            {"name": name, "mountPath": path} | ({"subPath": sub_path} if sub_path else {})
        )

    def disk(**fields: str) -> dict[str, Any]:
        return {"emptyDir": {name: value for name, value in fields.items() if value}}

    if work := profile.work:
        add("work", WORK_DIR, {"persistentVolumeClaim": {"claimName": work.claim}}, work.sub_path)
    else:
        add("work", WORK_DIR, disk(sizeLimit=pod.disk))
    add("temporary", TEMPORARY_DIR, disk(sizeLimit=pod.disk))
    if cache := profile.model_cache:
        claim = {"persistentVolumeClaim": {"claimName": cache.claim}}
        add("models", CACHE_DIR, claim, cache.sub_path)
    if trust := profile.trust:
        add("trust", TRUST_DIR, {"configMap": {"name": trust.config_map}})
    # NCCL talks through shared memory within a node; the runtime's default of 64 MiB is too small.
    add("shared-memory", "/dev/shm", disk(medium="Memory", sizeLimit=pod.shared_memory))
    return volumes, mounts


# --- its life -----------------------------------------------------------------------------------


class TrainJobs:
    """The TrainJobs of one namespace, through the Kubernetes API."""

    def __init__(self, api: Any, namespace: str) -> None:
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        self._api, self._namespace = api, namespace
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._errors: tuple[type[Exception], ...] = (client.ApiException, HTTPError)

    def run(
        self,
        job: Mapping[str, Any],
        tell: Callable[[str], None],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Create the job, or go on with the one of its name, and wait until it is complete.

        `tell` gets the lines of its pods, and what it waits for. The job is removed when it has
        ended; one that still runs when this process ends stays, for the next attempt.

        Raises:
            JobFailedError: it failed.
            StageError: it is refused, or somebody removed it.
            ApiAwayError: the API is away; the job stays.
        """
        name = job["metadata"]["name"]
        self._patiently(name, lambda: self._start(name, job, tell), poll_seconds)
        logs, said = PodLogs(self._core, self._namespace, name), ""
        while True:
            found, pods = self._patiently(
                name, lambda: (self._find(name), self._pods(name)), poll_seconds
            )
            logs.tell(pods, tell)
            if found is None:
                raise StageError(f"TrainJob {name} is gone: somebody has deleted it")
            state, condition = job_state(found)
            message = condition.get("message", "")
            if state in ENDS:
                reasons = [why for pod in pods if (why := why_ended(pod))]
                self._patiently(name, lambda: self.delete(name), poll_seconds)
                if state == "Failed":
                    at = condition.get("lastTransitionTime")
                    raise JobFailedError(
                        f"TrainJob {name} failed: {'; '.join(dict.fromkeys(reasons)) or message}",
                        datetime.fromisoformat(at) if at else None,
                    )
                return
            waits = [why for pod in pods if (why := why_waiting(pod))]
            now = "; ".join(dict.fromkeys(waits)) or f"{state}: {message}".rstrip(": ")
            if now != said:
                tell(f"TrainJob {name}: {now}")
                said = now
            time.sleep(poll_seconds)

    def runs(self, name: str) -> bool:
        """Whether there is a job of that name that has not ended."""
        found = self._patiently(name, lambda: self._find(name), POLL_SECONDS)
        return found is not None and job_state(found)[0] not in ENDS

    def _patiently(self, name: str, ask: Callable[[], T], pause: float) -> T:
        """Ask the API, again and again while it is away."""
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return ask()
            except self._errors as error:
                if getattr(error, "status", 0) in (401, 403):
                    raise StageError(_refused(name, error)) from error
                if time.monotonic() > deadline:
                    raise ApiAwayError(
                        f"the cluster's API has not answered for {AWAY_SECONDS:.0f} s, and nobody "
                        f"waits for TrainJob {name} until this step is tried again: {error}"
                    ) from error
            time.sleep(pause)

    def delete(self, name: str) -> None:
        """Remove a job and its pods; one that is not there is no error."""
        try:
            self._objects.delete_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, name, propagation_policy="Background",
                _request_timeout=ANSWER_SECONDS,
            )  # fmt: skip
        except self._errors as error:
            if getattr(error, "status", 0) != 404:
                raise

    def delete_of_run(self, run_id: str) -> list[str]:
        """Remove the jobs of a run that was cancelled; returns their names."""
        found = self._objects.list_namespaced_custom_object(
            GROUP, VERSION, self._namespace, PLURAL,
            label_selector=f"{RUN_LABEL}={label_value(run_id)}", _request_timeout=ANSWER_SECONDS,
        )  # fmt: skip
        names = [job["metadata"]["name"] for job in found["items"]]
        for name in names:
            self.delete(name)
        return names

    def _start(self, name: str, job: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        found = self._find(name)
        if found is not None and job_state(found)[0] in ENDS:
            self.delete(name)  # left by an attempt that ended before it could do so
            while self._find(name) is not None:
                time.sleep(0.5)
            found = None
        made = found or self._create(name, job)
        if not made["spec"].get("runtimePatches"):  # an older API drops the field in silence
            self.delete(name)
            raise StageError(
                "this cluster's TrainJobs have no runtimePatches, without which their pods have "
                "no volumes and no service account: install Kubeflow Trainer 2.2 or later, or "
                "give the stage one node (resources.nodes: 1)"
            )
        tell(f"TrainJob {name} {'runs already: waiting for it' if found else 'created'}")

    def _create(self, name: str, job: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            made: dict[str, Any] = self._objects.create_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, dict(job),
                _request_timeout=ANSWER_SECONDS,
            )  # fmt: skip
        except self._errors as error:
            status = getattr(error, "status", 0) or 0
            if status == 0 or status >= 500:  # away
                raise
            if status == 404:
                raise StageError(
                    "this cluster knows no TrainJob: install Kubeflow Trainer 2.2 or "
                    "later, or give the stage one node (resources.nodes: 1)"
                ) from error
            if status in (401, 403):
                raise StageError(_refused(name, error)) from error
            if status != 409:
                raise StageError(f"TrainJob {name} is refused: {_body(error)}") from error
            return self._find(name) or job  # by a request whose answer we did not get
        return made

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, name, _request_timeout=ANSWER_SECONDS
            )
        except self._errors as error:
            if getattr(error, "status", 0) == 404:
                return None
            raise
        return found

    def _pods(self, name: str) -> list[dict[str, Any]]:
        try:
            found = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}",
                _request_timeout=ANSWER_SECONDS,
            )  # fmt: skip
        except self._errors as error:
            if getattr(error, "status", 0) == 403:
                return []  # what the pods say is a help, not a need
            raise
        pods: list[dict[str, Any]] = as_dict(self._api, found.items)
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))


def job_state(job: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """`Complete`, `Failed`, `Suspended` or `Running`, and the condition that says so."""
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or []
                  if c.get("status") == "True"}  # fmt: skip
    for state in ("Complete", "Failed", "Suspended"):
        if state in conditions:
            return state, conditions[state]
    return "Running", {}


class PodLogs:
    """The lines of a job's pods, each told once."""

    def __init__(self, core: Any, namespace: str, job: str) -> None:
        self._core, self._namespace, self._job = core, namespace, job
        self._told: dict[str, int] = {}

    def tell(self, pods: Sequence[Mapping[str, Any]], tell: Callable[[str], None]) -> None:
        for pod in pods:
            name = pod["metadata"]["name"]
            for line in self._new_lines(name):
                tell(f"[{name.removeprefix(f'{self._job}-')}] {line}")

    def _new_lines(self, pod: str) -> Iterator[str]:
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        try:
            text = read_log(self._core, pod, self._namespace, CONTAINER)
        except (client.ApiException, HTTPError):  # not started, gone, or the API is away
            return
        whole = text[: text.rfind("\n") + 1]
        yield from whole[self._told.get(pod, 0) :].splitlines()
        self._told[pod] = len(whole)


def _refused(name: str, error: Exception) -> str:
    return (
        f"this pod may not use TrainJob {name} ({getattr(error, 'status', '')}): its service "
        "account needs create, get, list and delete on trainjobs (`trainer.token_secret` of the "
        "cluster profile)"
    )


def _body(error: Exception) -> str:
    return str(getattr(error, "body", "") or error)
