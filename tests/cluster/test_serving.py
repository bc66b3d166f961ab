"""Models served on the cluster: the objects are valid, restricted, and say what was asked for."""

from __future__ import annotations

from dataclasses import replace

import kubernetes_validate
import pytest

from caravan.cluster.profile import ClusterProfile
from caravan.cluster.serving import Server, manifests
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
