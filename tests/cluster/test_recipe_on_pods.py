"""A whole recipe on a cluster: every stage a pod, two of them lost on the way.

Kubeflow Pipelines' own backend is stood in for by `kfp_stand_in.py`; client, compiled pipeline, API
server, scheduler, kubelet, pods, PostgreSQL and S3 are real.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import restricted
import yaml
from cluster_client import Cluster
from kfp_pipeline import End, Pipeline, Step
from kfp_stand_in import StandIn
from kfp_steps import Pods, pod_of
from kubernetes import client

from caravan.cluster.profile import ClusterProfile
from caravan.recipe import Recipe
from caravan.recipe_io import load_recipe
from caravan.settings import Settings
from caravan_command import MINI, Caravan
from caravan_pipelines.launch import kubeflow

LOST = ("dpo", "rlvr")
"""Stages whose first pod is killed while it works."""


@pytest.fixture
def stand_in(cluster, namespace) -> Iterator[StandIn]:
    pods = Pods(cluster.core, namespace)
    server = StandIn(pods.of_run, token="tok")
    yield server
    server.close()


@pytest.fixture
def launcher(
    command, cluster, namespace, services, database, stage_environment, stand_in, tmp_path
) -> Caravan:
    """The command on this machine, with the cluster's registry, store and Kubeflow Pipelines."""
    variables = services.pod_environment(database)
    profile = {
        "namespace": namespace,
        "service_account": "stage",
        "images": {"cpu": cluster.image("stage-cpu")},
        "secrets": [{"name": stage_environment, "env": {name: name for name in variables}}],
        "work": {"claim": cluster.new_claim(namespace, "work", "4Gi")},
        "retries": {"count": 0, "interruptions": 2},
    }
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    here = services.settings(database)
    return command(
        tmp_path,
        **{f"CARAVAN_{name.upper()}": str(value) for name, value in here.items()},
        CARAVAN_KFP_URL=stand_in.url, CARAVAN_KFP_TOKEN="tok", CARAVAN_CLUSTER_PROFILE=str(path),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_run_that_loses_pods_makes_what_the_laptop_makes(
    cluster, namespace, launcher, undisturbed
):
    losses = Losses(cluster, namespace, launcher)
    launcher("launch", str(MINI), "--backend", "kubeflow", "--detach")
    launcher.wait_for(lambda: launcher.show()["state"] in ("succeeded", "failed"), 2000)
    losses.stop()

    shown = launcher.show()
    assert shown["state"] == "succeeded", losses.seen
    assert set(losses.killed) == set(LOST)
    assert launcher.digests() == undisturbed.digests()
    pods = losses.seen.values()
    assert len({pod.metadata.labels["caravan.dev/stage"] for pod in pods}) >= 10
    for pod in pods:
        assert pod.spec.service_account_name == "stage"
        # Kubeflow Pipelines cannot ask for a read-only root file system.
        assert restricted.violations(pod) == ["main: can write its root file system"]


class Losses:
    """Watches the pods of a namespace, and kills the first one of some stages."""

    def __init__(self, cluster: Cluster, namespace: str, launcher: Caravan) -> None:
        self._core, self._namespace, self._launcher = cluster.core, namespace, launcher
        self.seen: dict[str, client.V1Pod] = {}
        self.killed: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            for pod in self._core.list_namespaced_pod(self._namespace).items:
                name, stage = pod.metadata.name, pod.metadata.labels.get("caravan.dev/stage")
                self.seen[name] = pod
                if stage in LOST and stage not in self.killed and self._works(pod):
                    self.killed[stage] = name
                    self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0)

    def _works(self, pod: client.V1Pod) -> bool:
        stage = self._launcher.stage(pod.metadata.labels["caravan.dev/stage"])
        return pod.status.phase == "Running" and bool(stage) and stage["state"] == "running"


# --- GPUs ---------------------------------------------------------------------------------------

GPU = "nvidia.com/gpu"


@pytest.fixture
def gpus(cluster) -> Iterator[Callable[[int], None]]:
    """Gives the node so many GPUs, which are none."""
    yield lambda count: cluster.set_extended_resource(GPU, count)
    cluster.set_extended_resource(GPU, None)


def compiled_step(name: str, recipe: Recipe, profile: ClusterProfile, directory: Path) -> Step:
    """A step as the compiled pipeline of a recipe has it."""
    where = kubeflow.placement(recipe, profile, Settings(), "a-run", "ann")
    kubeflow.compile_pipeline(recipe, where, directory / "pipeline.yaml", "about")
    found: dict[str, Step] = {}

    class Recorder:
        def run(self, step: Step, stop: threading.Event) -> End:
            found[step.name] = step
            given = json.loads(step.command[step.command.index("--executor_input") + 1])
            outputs = dict.fromkeys(given["outputs"]["parameters"], "digest")
            return End(0, {"parameterValues": outputs})

    documents = yaml.safe_load_all((directory / "pipeline.yaml").read_text())
    Pipeline(*documents, Recorder()).run({"run": "a-run"})
    return found[name]


def test_gpus_that_a_recipe_asks_for_are_counted_by_scheduler_and_quota(
    cluster, namespace, gpus, tmp_path
):
    """The pod of a stage as its compiled pipeline asks for it, on a node that says it has GPUs."""
    recipe = load_recipe(MINI, ["sft.resources.gpus=2"])
    profile = ClusterProfile.model_validate(
        {"namespace": namespace, "images": {"gpu": cluster.image("stage-cpu")}}
    )
    pod = pod_of(
        compiled_step("sft", recipe, profile, tmp_path), run_id="gpu", service_account="stage"
    )
    name = cluster.start(namespace, pod)
    cluster.wait(lambda: f"Insufficient {GPU}" in cluster.describe(namespace, name))

    gpus(2)
    cluster.wait(lambda: cluster.core.read_namespaced_pod(name, namespace).spec.node_name)

    cluster.core.create_namespaced_resource_quota(
        namespace,
        client.V1ResourceQuota(
            metadata=client.V1ObjectMeta(name="gpus"),
            spec=client.V1ResourceQuotaSpec(hard={f"requests.{GPU}": "3"}),
        ),
    )
    pod["metadata"]["name"] = "too-much"
    cluster.wait(lambda: cluster.core.read_namespaced_resource_quota("gpus", namespace).status.used)
    with pytest.raises(client.ApiException, match="exceeded quota"):
        cluster.start(namespace, pod)
