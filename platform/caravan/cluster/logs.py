"""What the pods of a run have written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caravan.cluster.api import as_dict, kubernetes_api
from caravan.cluster.pod import NODE_LABEL, RUN_LABEL, label_value
from caravan.errors import CaravanError

KFP_RUN_LABEL = "pipeline/runid"
"""Kubeflow Pipelines' own; the pods of a sweep, which several runs share, have it alone."""


def list_pods(
    run_id: str, namespace: str, kfp_run_id: str = ""
) -> tuple[Any, list[dict[str, Any]]] | None:
    """A client of the cluster and the pods of a run, or of the sweep it is in, oldest first.

    Pods are as the API writes them. None where the cluster's API is not open to us.
    """
    api = kubernetes_api()
    if api is None:
        return None
    from kubernetes import client
    from urllib3.exceptions import HTTPError

    core = client.CoreV1Api(api)
    selectors = [f"{RUN_LABEL}={label_value(run_id)}"]
    selectors += [f"{KFP_RUN_LABEL}={kfp_run_id}"] if kfp_run_id else []
    pods: list[dict[str, Any]] = []
    for selector in selectors:
        try:
            found = core.list_namespaced_pod(
                namespace, label_selector=selector, _request_timeout=10
            )
        except (client.ApiException, HTTPError):
            return None
        if pods := as_dict(api, found.items):
            break
    return core, sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def pod_logs(run_id: str, namespace: str, kfp_run_id: str = "") -> Iterator[tuple[str, list[str]]]:
    """Of each pod of a run, or of the sweep it is in: its name with the stage, and its lines.

    Raises:
        CaravanError: the cluster's API is not open to us.
    """
    listed = list_pods(run_id, namespace, kfp_run_id)
    if listed is None:
        raise CaravanError(
            f"the pods of run {run_id} cannot be read: no kubeconfig that may list pods in "
            f"namespace {namespace!r} (KUBECONFIG names another one)"
        )
    from kubernetes import client

    core, pods = listed
    for pod in pods:
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        title = f"{labels.get(NODE_LABEL, '')} ({name}, {pod['status']['phase']})"
        try:
            text = read_log(core, name, namespace, _container(pod))
        except client.ApiException as error:
            text = f"(no log: {error.reason})"
        yield title, text.splitlines()


def read_log(core: Any, pod: str, namespace: str, container: str) -> str:
    """What a container has written, as it is: the client would parse one line of JSON."""
    answer = core.read_namespaced_pod_log(
        pod, namespace, container=container, _preload_content=False, _request_timeout=30
    )
    return str(answer.data.decode(errors="replace"))


def _container(pod: dict[str, Any]) -> str:
    """The container that runs the step; Kubeflow Pipelines adds others."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    return "main" if "main" in names else str(names[0])
