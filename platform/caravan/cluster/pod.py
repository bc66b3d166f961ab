"""What one stage's pod is asked of the cluster: the recipe's resources, in the profile's terms."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from caravan.cluster.profile import ClusterProfile, Toleration
from caravan.recipe import Resources

WORK_DIR = "/work"
"""`CARAVAN_HOME` of a pod."""
TEMPORARY_DIR = "/tmp"
CACHE_DIR = "/cache"
"""`HF_HOME` of a pod."""
TRUST_DIR = "/etc/caravan/trust"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
RUN_LABEL, NODE_LABEL = "caravan.dev/run", "caravan.dev/stage"


@dataclass(frozen=True)
class Pod:
    """Requests and placement. CPU and memory are requested and limited alike: a stage's threads
    and batches are sized by them."""

    image: str
    cpu: str
    memory: str
    gpus: int
    gpu_resource: str
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]
    disk: str
    """Size limit of the work directory; empty for none."""
    shared_memory: str
    """Size of /dev/shm; empty keeps the node's."""
    deadline_seconds: int
    """0 for none."""
    queue: str


def pod_of(resources: Resources, profile: ClusterProfile) -> Pod:
    """The pod of a stage that needs `resources` on one node.

    Raises:
        SettingsError: the profile does not know the type of GPU.
    """
    selector, tolerations, gpu_resource = dict(profile.node_selector), profile.tolerations, ""
    shared = resources.shared_memory_gib
    if resources.gpus:
        nodes = profile.gpu_nodes(resources.gpu_type)
        selector |= nodes.node_selector
        tolerations += nodes.tolerations
        gpu_resource = nodes.resource
        shared = shared or profile.shared_memory_gib
    return Pod(
        image=profile.images.gpu if resources.gpus else profile.images.cpu,
        cpu=str(resources.cpus),
        memory=mebibytes(resources.memory_gib),
        gpus=resources.gpus,
        gpu_resource=gpu_resource,
        node_selector=selector,
        tolerations=tolerations,
        disk=mebibytes(resources.disk_gib) if resources.disk_gib else "",
        shared_memory=mebibytes(shared) if shared else "",
        deadline_seconds=math.ceil((resources.deadline_hours or 0) * 3600),
        queue=resources.queue or profile.queue,
    )


def mebibytes(gibibytes: float) -> str:
    """A Kubernetes quantity: whole ones, as Kubeflow Pipelines takes no fractions."""
    return f"{math.ceil(gibibytes * 1024)}Mi"


def pod_environment(profile: ClusterProfile, dashboard_url: str = "") -> dict[str, str]:
    """The plain variables of every stage pod."""
    trusted: dict[str, str] = {}
    if profile.trust:
        authorities = f"{TRUST_DIR}/{profile.trust.key}"
        trusted = {"SSL_CERT_FILE": authorities, "REQUESTS_CA_BUNDLE": authorities}
    return {
        "CARAVAN_HOME": WORK_DIR,
        "HOME": WORK_DIR,
        "HF_HOME": CACHE_DIR if profile.model_cache else f"{WORK_DIR}/cache/hub",
        "CARAVAN_MAX_FAILURES": str(profile.retries.count + 1),
        **({"CARAVAN_DASHBOARD_URL": dashboard_url} if dashboard_url else {}),
        **trusted,
        **profile.environment,
    }


def label_value(text: str) -> str:
    """`text` as the value of a Kubernetes label: at most 63 of A-Z, a-z, 0-9, '-', '_', '.'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-._")


def placement(pod: Pod, profile: ClusterProfile) -> dict[str, Any]:
    """The fields of a pod's spec that say where it may run and who pulls its image."""
    fields: dict[str, Any] = {}
    if pod.node_selector:
        fields["nodeSelector"] = pod.node_selector
    if pod.tolerations:
        fields["tolerations"] = [t.model_dump(exclude_defaults=True) | {"operator": t.operator}
                                 for t in pod.tolerations]  # fmt: skip
    if profile.images.pull_secrets:
        fields["imagePullSecrets"] = [{"name": name} for name in profile.images.pull_secrets]
    return fields
