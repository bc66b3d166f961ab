"""Every variant lints, renders, and is valid to the newest and the oldest Kubernetes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml
from chart import CHART, NEWEST, OLDEST, VARIANTS
from kubernetes_validate.utils import SchemaNotFoundError

FORMER = {
    "batch/v1beta1": "batch/v1",
    "policy/v1beta1": "policy/v1",
    "autoscaling/v2beta2": "autoscaling/v2",
}
"""Versions older than the oldest schemas; the fields that we set are the same."""
CUSTOM = {"HTTPRoute", "ServiceMonitor", "TrainingRuntime"}
every_variant = pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)


@every_variant
def test_a_variant_lints(path):
    report = helm_python.lint(CHART, yaml.safe_load(path.read_text("utf-8")), strict=True)

    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


@every_variant
@pytest.mark.parametrize("version", [NEWEST, OLDEST])
def test_kubernetes_knows_every_field(render, path, version):
    rendered = render(yaml.safe_load(path.read_text("utf-8")), version=version)

    assert len(rendered.objects) >= 9
    schemas = "1.37" if version == NEWEST else "1.25"
    for object_ in rendered.objects:
        if version == OLDEST:
            object_["apiVersion"] = FORMER.get(object_["apiVersion"], object_["apiVersion"])
        try:
            kubernetes_validate.validate(object_, schemas, strict=True)
        except SchemaNotFoundError:
            assert object_["kind"] in CUSTOM, object_["kind"]


def test_a_misspelt_field_of_a_pod_would_be_found(render, values):
    deployment = render(values("trial")).one("Deployment", "caravan-dashboard")
    deployment["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []

    with pytest.raises(kubernetes_validate.utils.ValidationError, match="enviroment"):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_old_clusters_get_the_versions_that_they_have(render, values):
    def versions(version: str) -> dict[str, str]:
        rendered = render(values("production"), version=version)
        kinds = ("CronJob", "PodDisruptionBudget", "HorizontalPodAutoscaler")
        return {kind: rendered.all(kind)[0]["apiVersion"] for kind in kinds}

    assert set(versions(NEWEST).items()) == {
        ("CronJob", "batch/v1"), ("PodDisruptionBudget", "policy/v1"),
        ("HorizontalPodAutoscaler", "autoscaling/v2"),
    }  # fmt: skip
    assert set(versions(OLDEST).items()) == {
        ("CronJob", "batch/v1beta1"), ("PodDisruptionBudget", "policy/v1beta1"),
        ("HorizontalPodAutoscaler", "autoscaling/v2beta2"),
    }  # fmt: skip


@every_variant
def test_names_are_unique_and_belong_to_the_release(render, path):
    values = yaml.safe_load(path.read_text("utf-8"))
    rendered = render(values)
    names = [(o["kind"], o["metadata"]["name"]) for o in rendered.objects]

    assert len(names) == len(set(names))
    assert all(name.startswith(values.get("fullnameOverride", "caravan")) for _, name in names)
    for object_ in rendered.objects:
        assert object_["metadata"]["labels"]["app.kubernetes.io/instance"] == "caravan"
        assert object_["metadata"]["namespace"] == "ml"


@every_variant
def test_services_say_their_protocol_and_find_pods(render, path):
    rendered = render(yaml.safe_load(path.read_text("utf-8")))

    for service in rendered.all("Service"):
        wanted = service["spec"]["selector"].items()
        pods = [p for p in rendered.pods().values() if wanted <= p["metadata"]["labels"].items()]
        assert pods, service["metadata"]["name"]
        ports = {port["name"] for c in pods[0]["spec"]["containers"] for port in c["ports"]}
        for port in service["spec"]["ports"]:
            assert port["protocol"] == "TCP"  # server-side apply needs it
            assert port["targetPort"] in ports


@every_variant
def test_no_image_is_latest(render, path):
    for name, pod in render(yaml.safe_load(path.read_text("utf-8"))).pods().items():
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]), name
            assert not container["image"].endswith(":latest")


@every_variant
def test_the_notes_tell_the_next_three_commands(render, path):
    values = yaml.safe_load(path.read_text("utf-8"))
    notes = render(values).notes

    assert "helm test caravan --namespace ml" in notes
    if values.get("oidc", {}).get("enabled"):
        assert "https://caravan.example.com" in notes
    else:
        assert "port-forward deployment/caravan-dashboard 8501" in notes
    if values.get("kubeflow", {}).get("enabled"):
        assert "caravan launch pocket" in notes
    else:
        # `--reuse-values` would keep the defaults of the version that was installed first.
        upgrade = "helm upgrade caravan helm/caravan --namespace ml --reset-then-reuse-values --set"
        assert f"{upgrade} kubeflow.enabled=true" in notes


def test_the_readme_is_current():
    import importlib.util

    spec = importlib.util.spec_from_file_location("readme", CHART.parent / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)

    assert (CHART / "README.md").read_text("utf-8") == readme.render(), "run: python helm/readme.py"


def test_every_value_is_described_and_in_the_schema():
    text = (CHART / "values.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    table = (CHART / "README.md").read_text("utf-8")
    described = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))

    def leaves(value: object, path: str) -> list[str]:
        if not isinstance(value, dict) or not value or path in described:
            return [path]
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}")]

    undescribed = {leaf for key, value in values.items() for leaf in leaves(value, key)} - described
    assert undescribed == set()
    assert len(described) > 100


@every_variant
def test_values_of_the_previous_version_still_render(render, path):
    previous = Path(__file__).parent / "previous"
    values = yaml.safe_load((previous / path.name).read_text("utf-8"))

    upgraded = render(values, upgrade=True)

    # `helm upgrade --reuse-values` also hands over the defaults of the version before.
    with helm_python.Chart.load(previous / "caravan-0.2.0.tgz") as chart:
        reused = render(chart.merge_values(values), upgrade=True)
        before = render(values, chart=previous / "caravan-0.2.0.tgz")
    assert upgraded.names("Deployment") >= before.names("Deployment")
    assert reused.names("Deployment") == upgraded.names("Deployment")
    for kind in ("Deployment", "StatefulSet"):  # fields that cannot be changed in place
        for object_ in before.all(kind):
            now = upgraded.one(kind, object_["metadata"]["name"])
            assert now["spec"]["selector"] == object_["spec"]["selector"]
            claims = object_["spec"].get("volumeClaimTemplates")
            assert now["spec"].get("volumeClaimTemplates") == claims


def test_the_training_runtime_is_one_to_kubeflow_trainer(render, values):
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime as Runtime

    from caravan.cluster.trainjob import CONTAINER, STEP

    (given,) = render(values("production")).all("TrainingRuntime")
    runtime = Runtime.from_dict(given)

    assert runtime is not None
    assert runtime.to_dict()["spec"] == given["spec"]  # every field is one of theirs
    (job,) = given["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert (job["name"], container["name"]) == (STEP, CONTAINER)  # what our jobs patch


def test_what_only_other_projects_define_is_shaped_as_they_say(render, values):
    (route,) = render(values("gateway")).all("HTTPRoute")
    assert route["spec"] == {
        "hostnames": ["caravan.example.com"],
        "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
        "rules": [{"backendRefs": [{"name": "post-training-dashboard", "port": 80}]}],
    }
    rendered = render(values("production"))
    for monitor in rendered.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [s for s in rendered.all("Service") if wanted <= s["metadata"]["labels"].items()]
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        assert monitor["spec"]["endpoints"][0]["port"] in ports
        assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_the_log_of_the_check_can_be_read_when_it_has_succeeded(render, values):
    annotations = render(values("trial")).one("Pod", "caravan-check")["metadata"]["annotations"]

    assert annotations["helm.sh/hook"] == "test"
    assert "hook-succeeded" not in annotations["helm.sh/hook-delete-policy"]


def test_a_model_server_has_its_gpus_and_hands_them_over(render, values):
    server = render(values("production")).one("Deployment", "caravan-serving-judge")["spec"]

    (vllm,) = server["template"]["spec"]["containers"]
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "stage-gpu" in vllm["image"]
    assert server["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_new_version_of_the_chart_alone_restarts_no_database(render, values, tmp_path):
    newer = tmp_path / "caravan"
    shutil.copytree(CHART, newer)
    about = (newer / "Chart.yaml").read_text("utf-8")
    (newer / "Chart.yaml").write_text(re.sub(r"(?m)^version: .*", "version: 99.0.0", about))

    before, after = render(values("trial")), render(values("trial"), chart=newer)

    for name in ("caravan-postgres", "caravan-s3"):
        one, other = (r.one("StatefulSet", name) for r in (before, after))
        assert one["metadata"]["labels"] != other["metadata"]["labels"]
        assert one["spec"] == other["spec"]
