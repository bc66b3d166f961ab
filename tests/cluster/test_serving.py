"""Models served on the cluster: the objects are valid, restricted, and say what was asked for."""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

import kubernetes_validate
import pytest
from json_answer import answer_json
from kubernetes import client

from caravan.cluster.profile import ClusterProfile
from caravan.cluster.serving import Server, apply, manifests, remove
from caravan.errors import CaravanError
from caravan.recipe import Resources
from caravan_pipelines.cli.serve import check_name

PROFILE = ClusterProfile.model_validate(
    {
        "namespace": "research", "images": {"cpu": "r/cpu:1", "gpu": "r/gpu:1"},
        "gpus": {"h100": {"node_selector": {"gpu": "h100"}}},
        "trust": {"config_map": "company-ca"},
        "secrets": [{"name": "caravan", "env": {"registry-url": "CARAVAN_REGISTRY_URL"}}],
    }
)  # fmt: skip
SERVER = Server(
    name="judge", digest="3f" * 32, model_gib=15, api_key_secret="judge-key", max_replicas=4,
    resources=Resources(gpus=2, gpu_type="h100", cpus=8, memory_gib=64), max_model_len=8192,
)  # fmt: skip


def test_the_objects_are_valid():
    objects = manifests(SERVER, PROFILE)

    assert [one["kind"] for one in objects] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for one in objects:
        kubernetes_validate.validate(one, "1.37", strict=True)


def test_the_model_comes_from_the_store_and_the_key_from_a_secret():
    pod = manifests(SERVER, PROFILE)[0]["spec"]["template"]["spec"]
    (fetch,), (vllm,) = pod["initContainers"], pod["containers"]
    keys = [e["valueFrom"] for e in vllm["env"] if e["name"] == "VLLM_API_KEY"]

    assert SERVER.digest in fetch["command"][-1]
    assert {e["name"] for e in fetch["env"]} >= {"CARAVAN_REGISTRY_URL", "CARAVAN_HOME"}
    assert keys == [{"secretKeyRef": {"name": "judge-key", "key": "api-key"}}]
    assert "CARAVAN_REGISTRY_URL" not in {e["name"] for e in vllm["env"]}
    assert {"name": "SSL_CERT_FILE", "value": "/etc/caravan/trust/ca.crt"} in fetch["env"]
    assert {"name": "trust", "mountPath": "/etc/caravan/trust"} in fetch["volumeMounts"]
    assert {"name": "trust", "configMap": {"name": "company-ca"}} in pod["volumes"]
    assert "--tensor-parallel-size=2" in vllm["command"]
    assert "--max-model-len=8192" in vllm["command"]
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["nodeSelector"] == {"gpu": "h100"}


def test_the_pods_are_restricted_and_have_no_token():
    pod = manifests(SERVER, PROFILE)[0]["spec"]["template"]["spec"]

    assert pod["serviceAccountName"] == PROFILE.service_account
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["initContainers"] + pod["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_server_without_scaling_has_its_number_of_pods():
    fixed = Server(name="m", digest="a", model_gib=1, resources=SERVER.resources, replicas=3)
    objects = manifests(fixed, PROFILE)

    assert objects[0]["spec"]["replicas"] == 3
    assert len(objects) == 2
    assert fixed.base_url("research") == "http://m.research:8000/v1"


def test_a_server_without_gpus_is_refused():
    with pytest.raises(CaravanError, match="no image of ours has vLLM for CPUs: ask for one"):
        manifests(replace(SERVER, resources=Resources()), PROFILE)


def test_no_sidecar_stands_between_stages_and_a_server():
    labels = manifests(SERVER, PROFILE)[0]["spec"]["template"]["metadata"]["labels"]

    assert labels["sidecar.istio.io/inject"] == "false"


def test_a_new_version_takes_the_gpus_of_the_old_one():
    strategy = manifests(SERVER, PROFILE)[0]["spec"]["strategy"]

    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("name", ["Judge", "1st", "a_b", "x" * 64, "end-"])
def test_a_name_that_no_service_may_have_is_refused(name):
    with pytest.raises(CaravanError, match="use a-z"):
        check_name(name)


# --- on a cluster -------------------------------------------------------------------------------

PLURALS = {
    "autoscaling/v2": ("horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    "v1": ("services", "Service"),
    "apps/v1": ("deployments", "Deployment"),
}
OF_THE_CHART = {"app.kubernetes.io/component": "dashboard", "app.kubernetes.io/managed-by": "Helm"}


class Api(http.server.ThreadingHTTPServer):
    """The part of the Kubernetes API that serving uses: discovery, and objects by their paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.denied = ""
        """A method that is forbidden."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def client(self) -> client.ApiClient:
        host = f"http://127.0.0.1:{self.server_address[1]}"
        return client.ApiClient(client.Configuration(host=host))

    def add(self, version: str, name: str, labels: dict[str, str]) -> None:
        root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        plural, kind = PLURALS[version]
        self.objects[f"{root}/namespaces/research/{plural}/{name}"] = {
            "apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}
        }  # fmt: skip

    def names(self) -> list[str]:
        return sorted(path.partition("/research/")[2] for path in self.objects)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Api

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, objects = urlparse(self.path).path, self.server.objects
        if (known := _discovery(path)) is not None:
            return answer_json(self, known)
        if self.command == self.server.denied:
            message = 'services "judge" is forbidden: User "ann" cannot patch resource "services"'
            return answer_json(self, {"kind": "Status", "message": message}, 403)
        if self.command == "PATCH":
            objects[path] = json.loads(body)
        if path not in objects:
            return answer_json(self, {"kind": "Status", "code": 404}, 404)
        return answer_json(self, objects.pop(path) if self.command == "DELETE" else objects[path])

    do_GET = do_PATCH = do_DELETE = _handle


def _discovery(path: str) -> dict[str, Any] | None:
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for group, version in (("apps", "v1"), ("autoscaling", "v2")):
            named = {"groupVersion": f"{group}/{version}", "version": version}
            groups.append({"name": group, "versions": [named], "preferredVersion": named})
        return {"kind": "APIGroupList", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in PLURALS:
        return None
    plural, kind = PLURALS[version]
    resource = {"name": plural, "singularName": "", "namespaced": True, "kind": kind,
                "verbs": ["get", "patch", "delete"]}  # fmt: skip
    return {"kind": "APIResourceList", "groupVersion": version, "resources": [resource]}


@pytest.fixture
def api(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the client keeps what it discovers
    server = Api()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_is_made_brought_to_another_state_and_removed(api):
    apply(api.client, manifests(SERVER, PROFILE))
    apply(api.client, manifests(replace(SERVER, digest="4e" * 32), PROFILE))
    assert api.names() == ["deployments/judge", "horizontalpodautoscalers/judge", "services/judge"]
    assert "4e4e" in json.dumps(api.objects)
    apply(api.client, manifests(replace(SERVER, max_replicas=0), PROFILE))
    assert api.names() == ["deployments/judge", "services/judge"]

    assert remove(api.client, "judge", "research")
    assert api.names() == []
    assert not remove(api.client, "judge", "research")


@pytest.mark.parametrize(
    "labels",
    [
        OF_THE_CHART,
        {},
        {"caravan.dev/model": "other"},
        {"caravan.dev/model": "judge", "app.kubernetes.io/managed-by": "Helm"},
    ],
)
def test_what_is_of_the_chart_or_of_others_is_neither_changed_nor_removed(api, labels):
    api.add("apps/v1", "judge", labels)
    before = dict(api.objects)

    with pytest.raises(CaravanError, match="has a Deployment judge that is not of `caravan serve`"):
        apply(api.client, manifests(SERVER, PROFILE))
    with pytest.raises(CaravanError, match=f"labels: {next(iter(sorted(labels)), 'none')}"):
        remove(api.client, "judge", "research")
    assert api.objects == before


def test_a_right_that_is_missing_is_named(api):
    api.denied = "PATCH"
    with pytest.raises(CaravanError, match=r'403 .*"ann" cannot patch .*KUBECONFIG'):
        apply(api.client, manifests(SERVER, PROFILE))
    api.denied = "GET"
    with pytest.raises(CaravanError, match="403"):
        remove(api.client, "judge", "research")
    with pytest.raises(CaravanError, match="does not answer"):
        remove(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")), "a", "research")
