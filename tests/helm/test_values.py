"""Values that cannot be meant are refused, in a sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml
from chart import CHART


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    inner = values
    *parents, last = path.split(".")
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("variant", "path", "value", "said"),
    [
        # the schema: names and types
        ("trial", "postgress.enabled", True, "'postgress' not allowed"),
        ("trial", "dashboard.replica", 2, "'replica' not allowed"),
        ("trial", "dashboard.replicas", 0, "/dashboard/replicas"),
        ("trial", "dashboard.replicas", "2", "got string, want integer"),
        ("trial", "images.pullPolicy", "Sometimes", "/images/pullPolicy"),
        ("trial", "images.dashboard.digest", "sha256:123", "/images/dashboard/digest"),
        ("trial", "postgres.storage.size", "10 GB", "/postgres/storage/size"),
        ("trial", "backup.schedule", "daily", "/backup/schedule"),
        ("production", "store.url", "https://s3.example.com/bucket", "/store/url"),
        ("production", "oidc.issuer", "login.example.com", "/oidc/issuer"),
        ("production", "oidc.scopes", "email", "/oidc/scopes"),
        ("production", "stages.gpus.h100.nodeselector", {}, "'nodeselector' not allowed"),
        ("production", "stages.secrets", [{"name": "hub"}], "missing property 'env'"),
        ("production", "stages.environment", {"bad name": "x"}, "invalid propertyName 'bad name'"),
        ("production", "serving.models.judge.gpu", 4, "'gpu' not allowed"),
        ("production", "serving.models.Judge", {"path": "x"}, "Judge"),
        ("production", "networkPolicy.dashboardFrom", [{}], "/networkPolicy/dashboardFrom"),
        # sentences: what contradicts or is missing
        ("trial", "commonLabels", {"app.kubernetes.io/instance": "x"}, "with another prefix"),
        ("trial", "commonLabels", {"caravan.dev/stage": "x"}, "has caravan.dev/stage"),
        ("trial", "commonLabels", {"helm.sh/chart": "x"}, "has helm.sh/chart"),
        ("trial", "commonLabels", {"sidecar.istio.io/inject": "true"}, "has sidecar.istio.io"),
        ("trial", "images.registry", "", "images.registry is empty: push the images"),
        ("trial", "images.dashboard.tag", "latest", "write a version, or a digest"),
        ("trial", "postgres.enabled", False, "name a Secret whose key"),
        ("trial", "registry.existingSecret", "x", "postgres.enabled and registry.existingSecret"),
        ("trial", "s3.enabled", False, "the artifact store is not complete: set store.url"),
        ("trial", "store.url", "s3://caravan", "s3.enabled and store.* are both set"),
        ("trial", "dashboard.ingress.enabled", True, "cannot be published without sign-in"),
        ("trial", "dashboard.replicas", 2, "one pod at a time"),
        ("trial", "dashboard.autoscaling.enabled", True, "autoscaling needs oidc.enabled"),
        ("trial", "trainer.enabled", True, "trainer.enabled needs kubeflow.enabled"),
        ("trial", "serving.models.finished.path", "llama", "either artifact .* or path .*both"),
        ("trial", "serving.models.finished", {}, "either artifact .* or path .*neither"),
        ("trial", "serving.models.finished.gpus", 0, "finished has no GPUs, .* give it gpus"),
        ("trial", "serving.defaults.gpus", 0, "finished has no GPUs"),
        ("production", "serving.models.judge.replicas", 4, "judge.replicas is larger than max"),
        ("production", "serving.defaults.replicas", 4, "judge.replicas is larger than maxRepl"),
        ("minimal", "serving.models.m.path", "llama", "set stages.modelCache.enabled=true"),
        ("production", "serving.models.teacher.path", "a/../../b", "write a path without"),
        ("production", "oidc.existingSecret", "", "oidc.enabled needs oidc.existingSecret"),
        ("production", "dashboard.host", "", "oidc.enabled needs dashboard.host"),
        ("production", "dashboard.ingress.tlsSecret", "", "sign-in goes over TLS only"),
        ("production", "dashboard.gateway.enabled", True, "choose one"),
        ("production", "dashboard.autoscaling.minReplicas", 9, "larger than maxReplicas"),
        ("production", "networkPolicy.dashboardFrom", [], "no browser would reach"),
        ("production", "oidc.issuer", "http://login.example.com", "has to begin with https://"),
        ("production", "oidc.issuer", "http://localhost.example.com", "has to begin with https"),
        ("production", "networkPolicy.metricsFrom", [], "Prometheus would reach no metrics"),
        ("production", "networkPolicy.clusterPeers", [], "telemetry.otlpEndpoint, .* port 4318"),
        ("minimal", "telemetry.otlpEndpoint", "http://c.example.com", "add its name.* port 80"),
        ("production", "kubeflow.endpoint", "", "kubeflow.enabled needs kubeflow.endpoint"),
        ("production", "kubeflow.existingSecret", "x", "belong together"),
        ("gateway", "dashboard.gateway.name", "", "name the Gateway"),
        ("gateway", "metrics.serviceMonitor.enabled", True, "has nothing to monitor"),
    ],
)
def test_refused(render, values, variant, path, value, said):
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=said):
        render(changed(values(variant), path, value))


@pytest.mark.parametrize(
    ("variant", "path", "value"),
    [
        ("production", "oidc.issuer", "http://localhost:8080/realms/ml"),
        ("production", "oidc.issuer", "http://[::1]:8080"),
        ("production", "networkPolicy", {"enabled": False}),
        ("minimal", "telemetry.otlpEndpoint", "https://collector.example.com/v1"),
        ("minimal", "telemetry.otlpEndpoint", "http://collector.example.com:443"),
        ("trial", "telemetry.otlpEndpoint", "http://collector.monitoring:4318"),  # no policies
        ("trial", "serving.models.finished.maxReplicas", 1),
        ("trial", "commonLabels", {"example.com/helm.sh": "x", "app.kubernetes.io": "y"}),
    ],
)
def test_accepted(render, values, variant, path, value):
    assert render(changed(values(variant), path, value)).objects


@pytest.mark.parametrize(
    ("path", "value", "port"),
    [
        ("store.endpoint", "https://minio.example.com:9000", 9000),
        ("store.endpoint", "http://minio", 80),
        ("oidc.issuer", "https://login.example.com:8443", 8443),
        ("kubeflow.endpoint", "http://istio-ingressgateway.istio-system/pipeline", 80),
        ("kubeflow.endpoint", "https://[2001:db8::1]:8888", 8888),
        ("telemetry.otlpEndpoint", "http://collector.monitoring:4318", 4318),
    ],
)
def test_what_the_policies_shut_out_is_refused(render, values, path, value, port):
    given = changed(values("production"), "networkPolicy.clusterPeers", [])
    given = changed(given, "telemetry.otlpEndpoint", "")
    assert render(given).objects

    refused = f"no pod would reach {re.escape(f'{path}, {value}')}: .* its port {port}$"
    with pytest.raises(helm_python.HelmRenderError, match=re.compile(refused, re.MULTILINE)):
        render(changed(given, path, value))
    some = [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]
    for way in ({"externalPorts": [443, port]}, {"clusterPeers": some}, {"enabled": False}):
        opened = given | {"networkPolicy": given["networkPolicy"] | way}
        assert render(opened).objects


def test_what_the_policies_let_through_is_accepted(render, values):
    given = changed(values("production"), "networkPolicy.clusterPeers", [])
    given = changed(given, "telemetry.otlpEndpoint", "")
    for path, value in (
        ("store.endpoint", "http://minio-service.kubeflow.svc.cluster.local:9000"),
        ("kubeflow.endpoint", "https://kubeflow.example.com/pipeline"),
        ("telemetry.otlpEndpoint", "https://collector.example.com/v1"),
    ):
        assert render(changed(given, path, value)).objects

    with pytest.raises(helm_python.HelmRenderError, match="externalCidrs has its address"):
        render(changed(given, "networkPolicy.externalCidrs", []))


def test_large_numbers_stay_whole(render, values):
    bounded = ("port", "targetCPUPercent", "sessionHours")

    def enlarged(given: Any) -> Any:
        if isinstance(given, dict):
            return {k: v if k in bounded else enlarged(v) for k, v in given.items()}
        return 2_000_000 if type(given) is int else given

    def numbers(found: Any) -> Iterator[object]:
        if isinstance(found, dict | list):
            inner = found.values() if isinstance(found, dict) else found
            for value in inner:
                yield from numbers(value)
        elif isinstance(found, float) or re.search(r"\de\+\d", str(found)):
            yield found

    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    model = {"artifact": "", "path": "llama", **enlarged(defaults["serving"]["defaults"])}
    given = enlarged(defaults) | {k: v for k, v in values("production").items()
                                  if k not in ("serving", "dashboard", "trainer")}  # fmt: skip
    given["serving"] = {"models": {"m": model | {"path": "llama"}}}
    given["dashboard"] = enlarged(defaults["dashboard"]) | {"host": "caravan.example.com"}
    for database in (True, False):
        given["postgres"]["enabled"] = database
        given["registry"]["existingSecret"] = "" if database else "caravan-registry"
        assert [n for o in render(given).objects for n in numbers(o)] == []


def names_of(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Values that are names of objects or keys of Secrets."""
    for name, inner in schema.get("properties", {}).items():
        if inner.get("$ref") in ("#/$defs/name", "#/$defs/key"):
            yield f"{path}{name}"
        yield from names_of(inner, f"{path}{name}.")


@pytest.mark.parametrize("published", ["ingress", "gateway"])
def test_names_that_look_like_numbers_stay_names(render, values, published):
    given = values("production")
    paths = list(names_of(json.loads((CHART / "values.schema.json").read_text("utf-8"))))
    assert len(paths) > 25
    for path in [*paths, "dashboard.host", "dashboard.gateway.sectionName"]:
        changed(given, path, "123")
    changed(given, "kubeflow.existingSecretKeys", ["token"])
    changed(given, "images.pullSecrets", ["123"])
    changed(given, "serving.models.null", {"path": "llama"})
    changed(given, "dashboard.ingress.enabled", published == "ingress")
    changed(given, "dashboard.gateway.enabled", published == "gateway")

    def leaves(found: Any) -> Iterator[object]:
        if isinstance(found, dict | list):
            for value in found.values() if isinstance(found, dict) else found:
                yield from leaves(value)
        else:
            yield found

    objects = render(given, namespace="123").objects
    objects += [yaml.safe_load(text) for o in objects if o["kind"] == "ConfigMap"
                for text in o["data"].values()]  # fmt: skip
    assert [o for o in objects if {123, None} & set(leaves(o))] == []
    assert sum(list(leaves(o)).count("123") for o in objects) > 100


def test_nobody_may_use_the_dashboard(render, values):
    given = values("production")
    for role in ("viewer", "launcher", "admin"):
        given["oidc"][f"{role}Groups"] = []

    with pytest.raises(helm_python.HelmRenderError, match="nobody could use the dashboard"):
        render(given)


def test_everything_that_is_wrong_is_told_at_once(render):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render({})

    message = str(refused.value)
    for said in ("images.registry is empty", "the registry has no database", "store.url"):
        assert said in message
