"""GPUs by type, and how many are free: of the cluster's nodes, else of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from typing import Any

from caravan.errors import CaravanError
from caravan_pipelines.doctor import cluster
from caravan_pipelines.doctor.finding import NotHereError

TYPE_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "gpu-type")
"""Labels of nodes that name the type of their GPUs."""
BUSY_MIB = 1024
"""Memory in use from which a GPU of this machine counts as taken."""
ENDED = ("Succeeded", "Failed")


def gpus() -> str:
    try:
        client = cluster.api()
    except NotHereError:
        return _of_this_machine()
    return _of_cluster(client)


def _of_cluster(client: Any) -> str:
    from kubernetes.client import ApiException, CoreV1Api

    core = CoreV1Api(client)
    try:
        nodes = core.list_node(_request_timeout=cluster.CONNECT_SECONDS).items
        pods = core.list_pod_for_all_namespaces(_request_timeout=cluster.CONNECT_SECONDS).items
    except ApiException as error:
        if error.status == 403:
            raise NotHereError("this account may not list nodes and pods") from error
        raise CaravanError(f"nodes cannot be listed: {error.reason}") from error
    types: dict[str, str] = {}
    there, taken = Counter[str](), Counter[str]()
    for node in nodes:
        labels = node.metadata.labels or {}
        for resource, amount in (node.status.allocatable or {}).items():
            if _is_gpu(resource) and int(amount):
                kind = next((labels[name] for name in TYPE_LABELS if name in labels), resource)
                types[node.metadata.name] = kind
                there[kind] += int(amount)
    for pod in pods:
        if pod.spec.node_name in types and pod.status.phase not in ENDED:
            taken[types[pod.spec.node_name]] += _requested(pod)
    return _said(there, taken) if there else "none: no node offers a GPU; stages run on CPUs"


def _requested(pod: Any) -> int:
    return sum(
        int(amount)
        for container in pod.spec.containers
        for resource, amount in ((container.resources and container.resources.limits) or {}).items()
        if _is_gpu(resource)
    )


def _is_gpu(resource: str) -> bool:
    return resource.endswith("/gpu") or resource.startswith("nvidia.com/mig-")


def _of_this_machine() -> str:
    if shutil.which("nvidia-smi") is None:
        raise NotHereError("this machine has none that nvidia-smi knows; stages run on the CPU")
    query = "--query-gpu=name,memory.used"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise CaravanError(
            f"nvidia-smi fails: {(done.stdout + done.stderr).strip()}; the driver has to be "
            "repaired or the machine restarted"
        )
    there, taken = Counter[str](), Counter[str]()
    for line in done.stdout.splitlines():
        name, used = (part.strip() for part in line.rsplit(",", 1))
        there[name] += 1
        taken[name] += used.isdigit() and int(used) > BUSY_MIB
    return _said(there, taken)


def _said(there: Counter[str], taken: Counter[str]) -> str:
    kinds = (f"{there[kind] - taken[kind]} of {there[kind]} {kind} free" for kind in sorted(there))
    return ", ".join(kinds)
