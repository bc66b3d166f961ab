"""Values that cannot be meant are refused, in a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest


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
        ("production", "serving.models.judge.gpu", 4, "'gpu' not allowed"),
        ("production", "serving.models.Judge", {"path": "x"}, "Judge"),
        ("production", "networkPolicy.dashboardFrom", [{}], "/networkPolicy/dashboardFrom"),
        # sentences: what contradicts or is missing
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
        ("minimal", "serving.models.m.path", "llama", "set stages.modelCache.enabled=true"),
        ("production", "serving.models.teacher.path", "a/../../b", "write a path without"),
        ("production", "oidc.existingSecret", "", "oidc.enabled needs oidc.existingSecret"),
        ("production", "dashboard.host", "", "oidc.enabled needs dashboard.host"),
        ("production", "dashboard.ingress.tlsSecret", "", "sign-in goes over TLS only"),
        ("production", "dashboard.gateway.enabled", True, "choose one"),
        ("production", "dashboard.autoscaling.minReplicas", 9, "larger than maxReplicas"),
        ("production", "networkPolicy.dashboardFrom", [], "no browser would reach"),
        ("production", "kubeflow.endpoint", "", "kubeflow.enabled needs kubeflow.endpoint"),
        ("production", "kubeflow.existingSecret", "x", "belong together"),
        ("gateway", "dashboard.gateway.name", "", "name the Gateway"),
        ("gateway", "metrics.serviceMonitor.enabled", True, "has nothing to monitor"),
    ],
)
def test_refused(render, values, variant, path, value, said):
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=said):
        render(changed(values(variant), path, value))


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
