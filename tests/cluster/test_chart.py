"""The chart on a real cluster: install, check, upgrade, roll back, uninstall, install again."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import psycopg
import pytest
import restricted
from cluster_client import Cluster
from kubernetes import client
from served_model import models_at, save_model_that_says
from trial import CHART, RELEASE, SECONDS, reach, settings_of, trial_values

from caravan.registry import Registry
from caravan.store import open_store

PREVIOUS = Path(__file__).parents[1] / "helm" / "previous" / "caravan-0.2.0.tgz"

RECORD = """
from caravan.registry import Registry
from caravan.settings import load_settings
from caravan.store import open_store
import pathlib, sys, tempfile
settings = load_settings()
registry = Registry(settings.resolved_registry_url)
store = open_store(settings.resolved_store_url, settings)
if sys.argv[1] == "write":
    registry.create_run({}, name="kept", seed=1, recipe_digest="0" * 64, owner="ann")
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "file").write_text("kept")
        print(store.put(pathlib.Path(directory), "report").digest)
else:
    store.verify(sys.argv[2])
    print([run.name for run in registry.list_runs()])
"""


@pytest.fixture
def home(cluster) -> Iterator[str]:
    with cluster.new_namespace("caravan-chart", restricted=True) as name:
        yield name


@pytest.fixture
def helm(cluster, home) -> Iterator[helm_python.Config]:
    with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=home) as config:
        yield config


class Release:
    """The release in its namespace, as its users see it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def pods(self) -> list[Any]:
        found = self.cluster.core.list_namespaced_pod(self.namespace).items
        return [pod for pod in found if pod.metadata.deletion_timestamp is None]

    def inside(self, *arguments: str) -> str:
        """Run a script in a pod with the dashboard's image and environment; gives its output."""
        deployment = self.cluster.apps.read_namespaced_deployment(
            f"{RELEASE}-dashboard", self.namespace
        )
        pod = deployment.spec.template
        pod.spec.restart_policy = "Never"
        main = pod.spec.containers[0]
        main.command = ["python3", "-c", RECORD, *arguments]
        main.readiness_probe = main.liveness_probe = main.startup_probe = None
        pod.metadata = client.V1ObjectMeta(generate_name="inside-")
        return self.cluster.run(
            self.namespace, self.cluster.api.sanitize_for_serialization(pod)
        ).strip()

    def password(self) -> str:
        return self.cluster.secret(self.namespace, f"{RELEASE}-postgres")["password"]

    def left(self) -> dict[str, set[str]]:
        """Names of what the namespace holds, by kind, without what the cluster puts in each."""
        core, apps, batch = self.cluster.core, self.cluster.apps, self.cluster.batch
        rbac = client.RbacAuthorizationV1Api(self.cluster.api)
        network = client.NetworkingV1Api(self.cluster.api)
        listed = {
            "claims": core.list_namespaced_persistent_volume_claim,
            "secrets": core.list_namespaced_secret,
            "config maps": core.list_namespaced_config_map,
            "services": core.list_namespaced_service,
            "accounts": core.list_namespaced_service_account,
            "deployments": apps.list_namespaced_deployment,
            "stateful sets": apps.list_namespaced_stateful_set,
            "jobs": batch.list_namespaced_job,
            "roles": rbac.list_namespaced_role,
            "bindings": rbac.list_namespaced_role_binding,
            "policies": network.list_namespaced_network_policy,
        }
        found = {}
        for kind, ask in listed.items():
            names = {item.metadata.name for item in ask(self.namespace).items}
            names = {n for n in names if not n.startswith(("default", "kube-root-ca.crt"))}
            if names:
                found[kind] = names
        return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trial_from_install_to_install_again(cluster, home, helm, gpus, tmp_path):
    release = Release(cluster, home)
    backup = {"enabled": True, "storage": {"size": "1Gi"}}
    given = trial_values(cluster) | {"backup": backup}

    # the version before, with something to keep
    helm.install(str(PREVIOUS), RELEASE, without_metrics(given), wait="watcher", timeout=SECONDS)
    password = release.password()
    digest = release.inside("write")

    # upgrade: migrations run first, secrets and data stay
    helm.upgrade(str(CHART), RELEASE, given, wait="watcher", timeout=SECONDS)
    assert release.password() == password
    assert "kept" in release.inside("read", digest)
    tested = helm.test(RELEASE, timeout=SECONDS, logs=True)
    assert "registry: " in tested["logs"], tested["logs"]
    for pod in release.pods():
        assert restricted.violations(pod) == [], pod.metadata.name

    # the dashboard: through a port-forward, and not by the pod's address
    (dashboard,) = [p for p in release.pods() if p.metadata.name.startswith(f"{RELEASE}-dashboard")]
    with cluster.forward(home, f"deployment/{RELEASE}-dashboard", 8501) as port:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=30)
        assert answer.read() == b"ok"
    if cluster.api.configuration.host.startswith("https://127.0.0.1"):  # the node is this machine
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://{dashboard.status.pod_ip}:8501/", timeout=10)

    # a backup, now rather than at night; then the database is lost, and brought back
    assert ".dump" in run_now(cluster, home, "backup")
    lose_database(cluster, home, release)
    assert "is restored: 1 runs" in run_now(cluster, home, "restore")
    assert "kept" in release.inside("read", digest)

    # a model of the store behind a server of the release, for whoever has its key
    gpus(1)
    served = with_model(given, save_model(cluster, home, tmp_path))
    helm.upgrade(str(CHART), RELEASE, served, wait="watcher", timeout=SECONDS)
    with reach(cluster, home, "serving", 8000) as address:
        key = cluster.secret(home, f"{RELEASE}-serving")["api-key"]
        assert models_at(address, key) == ["echo"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            models_at(address, "another key")
    for pod in release.pods():
        assert restricted.violations(pod) == [], pod.metadata.name

    # a change that cannot work is taken back
    broken = served | {"images": served["images"] | {"dashboard": {"tag": "missing"}}}
    with pytest.raises(helm_python.HelmError):
        helm.upgrade(str(CHART), RELEASE, broken, wait="watcher", timeout=30)
    helm.rollback(RELEASE, version=2, wait="watcher", timeout=SECONDS)
    assert release.password() == password
    assert "kept" in release.inside("read", digest)

    # uninstalled, it leaves its data volumes and nothing else
    helm.uninstall(RELEASE, wait="watcher", timeout=SECONDS)
    for pod in release.pods():
        if pod.metadata.name.startswith(("inside-", f"{RELEASE}-check")):
            cluster.core.delete_namespaced_pod(pod.metadata.name, home)
    cluster.wait(lambda: not cluster.core.list_namespaced_pod(home).items, lambda: "the last pod")
    assert release.left() == {
        "claims": {f"data-{RELEASE}-postgres-0", f"data-{RELEASE}-s3-0", f"{RELEASE}-backup"}
    }

    # installed again over them, everything is there, under a new password
    helm.install(str(CHART), RELEASE, given, wait="watcher", timeout=SECONDS)
    assert release.password() != password
    assert "kept" in release.inside("read", digest)


def without_metrics(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"metrics": {"enabled": False}}


def lose_database(cluster: Cluster, namespace: str, release: Release) -> None:
    with (
        reach(cluster, namespace, "postgres", 5432) as address,
        psycopg.connect(f"postgresql://caravan:{release.password()}@{address}/caravan") as lost,
    ):
        lost.execute("DROP SCHEMA public CASCADE")
        lost.execute("CREATE SCHEMA public")


def save_model(cluster: Cluster, namespace: str, directory: Path) -> str:
    """Digest of a model in the release's store."""
    save_model_that_says("hello", directory / "model")
    with (
        reach(cluster, namespace, "postgres", 5432) as postgres,
        reach(cluster, namespace, "s3", 8333) as s3,
    ):
        settings = settings_of(cluster, namespace, postgres, s3, directory)
        store = open_store(settings.resolved_store_url, settings)
        model = store.put(directory / "model", "model")
        with Registry(settings.resolved_registry_url) as registry:
            registry.add_artifact(model, store.uri(model.digest))
    return model.digest


def with_model(given: dict[str, Any], digest: str) -> dict[str, Any]:
    """Served by vLLM's build for CPUs, on a GPU that is none."""
    gpu_image = {**given["images"]["stageGpu"], "name": "vllm"}
    resources = {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}
    model = {
        "artifact": digest, "modelSize": "1Gi", "sharedMemory": "1Gi", "resources": resources,
        "args": ["--enforce-eager", "--dtype=float32"],
    }  # fmt: skip
    return given | {
        "images": given["images"] | {"stageGpu": gpu_image},
        "serving": {"models": {"echo": model}},
    }


def owner(found: dict[str, Any]) -> dict[str, Any]:
    """With whose end a Job ends, too."""
    metadata = found["metadata"]
    return {
        "apiVersion": found["apiVersion"], "kind": found["kind"], "name": metadata["name"],
        "uid": metadata["uid"],
    }  # fmt: skip


def run_now(cluster: Cluster, namespace: str, name: str) -> str:
    """What `kubectl create job --from=cronjob/NAME` does (one newer than the cluster cannot);
    gives the job's log."""
    cron_jobs = client.CustomObjectsApi(cluster.api)
    kinds = client.ApisApi(cluster.api).get_api_versions().groups
    (batch,) = [group for group in kinds if group.name == "batch"]
    version = "v1beta1" if "v1beta1" in [v.version for v in batch.versions] else "v1"
    found = cron_jobs.get_namespaced_custom_object(
        "batch", version, namespace, "cronjobs", f"{RELEASE}-{name}"
    )
    about = {"name": f"now-{name}", "ownerReferences": [owner(found)]}
    job = {"metadata": about, "spec": found["spec"]["jobTemplate"]["spec"]}
    cluster.batch.create_namespaced_job(namespace, job)
    selector = f"job-name=now-{name}"
    (pod,) = cluster.wait(
        lambda: cluster.core.list_namespaced_pod(namespace, label_selector=selector).items
    )
    phase = cluster.wait_for_end(namespace, pod.metadata.name)
    log = cluster.log(namespace, pod.metadata.name)
    assert phase == "Succeeded", log
    return log
