"""A model of the store behind an OpenAI-compatible endpoint: vLLM as a Deployment with a Service.

Recipes name the endpoint as an `openai` engine; `base_url` gives its address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caravan.cluster.api import in_words
from caravan.cluster.pod import (
    TEMPORARY_DIR,
    TRUST_DIR,
    WORK_DIR,
    mebibytes,
    placement,
    pod_environment,
    pod_of,
)
from caravan.cluster.profile import ClusterProfile
from caravan.errors import CaravanError
from caravan.recipe import Resources

PORT = 8000
MODEL_DIR = "/model"
MODEL_LABEL = "caravan.dev/model"
_FETCH = (
    f"rm -rf {MODEL_DIR}/weights && caravan artifact get {{}} --to {MODEL_DIR}/weights"
    f" && chmod -R u+w {MODEL_DIR}/home && rm -rf {MODEL_DIR}/home"
)
"""Shell; the copy that the store's cache keeps is read-only."""
FINGERS = "caravan-serve"
"""Field manager of what is applied."""


@dataclass(frozen=True)
class Server:
    """What is served, and how."""

    name: str
    """Of the Deployment, the Service and the model in requests."""
    digest: str
    """Of a model in the store."""
    model_gib: float
    """Its size; the volume has room for two, as it is fetched, checked and copied."""
    resources: Resources
    """Of each pod; its GPUs, one at least, are vLLM's tensor parallelism."""
    replicas: int = 1
    max_replicas: int = 0
    """Scales up to so many by CPU; 0 does not scale."""
    api_key_secret: str = ""
    """Secret whose key `api-key` clients must give; empty asks for none."""
    max_model_len: int = 0
    """Tokens of prompt and reply; 0 takes the model's own."""
    args: tuple[str, ...] = ()
    """Further ones for vLLM."""
    start_seconds: int = 1800

    def base_url(self, namespace: str) -> str:
        return f"http://{self.name}.{namespace}:{PORT}/v1"


def manifests(server: Server, profile: ClusterProfile) -> list[dict[str, Any]]:
    """The objects of a server, as the API takes them.

    Raises:
        CaravanError: no GPUs are asked for.
    """
    if not server.resources.gpus:
        raise CaravanError(
            f"{server.name} has no GPUs, and no image of ours has vLLM for CPUs: ask for one or "
            "more (--gpus 1)"
        )
    labels = {"app.kubernetes.io/name": "caravan", "app.kubernetes.io/component": "serving",
              MODEL_LABEL: server.name}  # fmt: skip
    metadata = {"name": server.name, "namespace": profile.namespace, "labels": labels}
    spec: dict[str, Any] = {
        "selector": {"matchLabels": {MODEL_LABEL: server.name}},
        # A new pod could wait for ever for the GPUs that the old one holds.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "template": {
            # Stage pods have no sidecar of Istio, and one here would refuse them.
            "metadata": {"labels": {**labels, "sidecar.istio.io/inject": "false"}},
            "spec": _pod(server, profile),
        },
    }
    if not server.max_replicas:
        spec["replicas"] = server.replicas
    service = {
        "selector": {MODEL_LABEL: server.name},
        "ports": [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    found = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]
    if server.max_replicas:
        found.append(_autoscaler(server, metadata))
    return found


def _pod(server: Server, profile: ClusterProfile) -> dict[str, Any]:
    asked = pod_of(server.resources, profile)
    limits = {"memory": asked.memory, asked.gpu_resource: str(asked.gpus)}
    resources = {"requests": {"cpu": asked.cpu, "memory": asked.memory}, "limits": limits}
    mounts = [{"name": "work", "mountPath": WORK_DIR},
              {"name": "temporary", "mountPath": TEMPORARY_DIR}]  # fmt: skip
    model = {"name": "model", "mountPath": MODEL_DIR}
    shared = {"name": "shared-memory", "mountPath": "/dev/shm"}
    fetch = {
        "name": "fetch",
        "image": profile.images.cpu,
        "command": ["sh", "-euc", _FETCH.format(server.digest)],
        "env": [*_environment(profile), {"name": "CARAVAN_HOME", "value": f"{MODEL_DIR}/home"}],
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    }  # fmt: skip
    serve = {
        "name": "vllm",
        "image": asked.image,
        "command": _command(server),
        "env": _server_environment(server),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources,
        **_probes(server.start_seconds),
    }
    common = {"imagePullPolicy": profile.images.pull_policy, "securityContext": {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}}}  # fmt: skip
    spec: dict[str, Any] = {
        "serviceAccountName": profile.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": profile.user_id, "runAsGroup": profile.user_id,
            "fsGroup": profile.user_id, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [{**fetch, **common, "volumeMounts": [*mounts, model]}],
        "containers": [
            {**serve, **common, "volumeMounts": [*mounts, shared, model | {"readOnly": True}]}
        ],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "temporary", "emptyDir": {}},
            {"name": "model", "emptyDir": {"sizeLimit": mebibytes(2 * server.model_gib + 1)}},
            {"name": "shared-memory",
             "emptyDir": {"medium": "Memory", "sizeLimit": asked.shared_memory or "8192Mi"}},
        ],
    }  # fmt: skip
    if trust := profile.trust:  # of the one that fetches the model
        spec["volumes"].append({"name": "trust", "configMap": {"name": trust.config_map}})
        spec["initContainers"][0]["volumeMounts"].append({"name": "trust", "mountPath": TRUST_DIR})
    spec |= placement(asked, profile)
    return spec


def _command(server: Server) -> list[str]:
    words = [
        "python3", "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL_DIR}/weights",
        f"--served-model-name={server.name}", "--host=0.0.0.0", f"--port={PORT}",
    ]  # fmt: skip
    if server.resources.gpus > 1:
        words.append(f"--tensor-parallel-size={server.resources.gpus}")
    if server.max_model_len:
        words.append(f"--max-model-len={server.max_model_len}")
    return [*words, *server.args]


def _environment(profile: ClusterProfile) -> list[dict[str, Any]]:
    plain = pod_environment(profile)
    found: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in plain.items() if name != "CARAVAN_HOME"
    ]
    kinds = (("secretKeyRef", profile.secrets), ("configMapKeyRef", profile.config_maps))
    for kind, sources in kinds:
        for source in sources:
            found += [
                {"name": variable, "valueFrom": {kind: {"name": source.name, "key": key}}}
                for key, variable in source.env.items()
            ]
    return found


def _server_environment(server: Server) -> list[dict[str, Any]]:
    plain = {"HOME": WORK_DIR, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    found: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in plain.items()]
    if server.api_key_secret:
        reference = {"secretKeyRef": {"name": server.api_key_secret, "key": "api-key"}}
        found.append({"name": "VLLM_API_KEY", "valueFrom": reference})
    return found


def _probes(start_seconds: int) -> dict[str, Any]:
    get = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "startupProbe": {**get, "periodSeconds": 10, "timeoutSeconds": 5,
                         "failureThreshold": max(1, start_seconds // 10)},
        "readinessProbe": {**get, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**get, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 5},
    }  # fmt: skip


def _autoscaler(server: Server, metadata: dict[str, Any]) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": 80}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": server.name},
            "minReplicas": server.replicas,
            "maxReplicas": server.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


# --- on the cluster -----------------------------------------------------------------------------


KINDS = (
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
)
"""Of a server's objects, in the order in which they are removed."""
MANAGER_LABEL = "app.kubernetes.io/managed-by"


@in_words()
def apply(api: Any, objects: list[dict[str, Any]]) -> None:
    """Create the objects of a server, or bring those that it has to this state.

    Raises:
        CaravanError: something else has its name, or the API refuses.
    """
    from kubernetes.dynamic import DynamicClient

    client, metadata = DynamicClient(api), objects[0]["metadata"]
    wanted = {one["kind"] for one in objects}
    for resource in _standing(client, metadata["name"], metadata["namespace"]):
        if resource.kind not in wanted:  # an autoscaler
            resource.delete(name=metadata["name"], namespace=metadata["namespace"])
    for one in objects:
        kind = client.resources.get(api_version=one["apiVersion"], kind=one["kind"])
        kind.server_side_apply(
            body=one, name=metadata["name"], namespace=metadata["namespace"],
            field_manager=FINGERS, force_conflicts=True,
        )  # fmt: skip


@in_words()
def remove(api: Any, name: str, namespace: str) -> bool:
    """Remove a server; whether there was one.

    Raises:
        CaravanError: something else has its name, or the API refuses.
    """
    from kubernetes.dynamic import DynamicClient

    standing = _standing(DynamicClient(api), name, namespace)
    for resource in standing:
        resource.delete(name=name, namespace=namespace)
    return bool(standing)


def _standing(client: Any, name: str, namespace: str) -> list[Any]:
    """The kinds of which a server has an object.

    Raises:
        CaravanError: an object of that name is not of `caravan serve`. The chart has servers, too.
    """
    from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError

    found = []
    for version, kind in KINDS:
        try:
            resource = client.resources.get(api_version=version, kind=kind)
            metadata = resource.get(name=name, namespace=namespace).to_dict()["metadata"]
        except (NotFoundError, ResourceNotFoundError):
            continue
        labels = metadata.get("labels") or {}
        if labels.get(MODEL_LABEL) != name or labels.get(MANAGER_LABEL) == "Helm":
            shown = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
            raise CaravanError(
                f"namespace {namespace} has a {kind} {name} that is not of `caravan serve` "
                f"(labels: {shown or 'none'}); it stays as it is: use another name"
            )
        found.append(resource)
    return found
