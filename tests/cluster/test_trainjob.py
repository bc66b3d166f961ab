"""Training on several nodes: the TrainJob, and its life through the real Kubernetes API.

Kubeflow Trainer's controller is distributed as an image; here its custom resources are real, and
the test plays the controller: it makes the pods of the job and sets its status.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import restricted
from kubeflow_trainer_api import models
from kubernetes import client

from caravan.cluster.profile import ClusterProfile
from caravan.cluster.trainjob import GROUP, PLURAL, VERSION, TrainJobs, job_name, train_job
from caravan.errors import StageError
from caravan.recipe import Resources
from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.store import open_store
from caravan_command import MINI, Caravan
from waiting import wait_until

until = partial(wait_until, pause_seconds=0.2)

PROFILE = ClusterProfile.model_validate(
    {
        "namespace": "research", "images": {"gpu": "r/gpu:1", "pull_secrets": ["pull"]},
        "gpus": {"h100": {"node_selector": {"gpu": "h100"}}},
        "secrets": [{"name": "caravan", "env": {"registry-url": "CARAVAN_REGISTRY_URL"}}],
        "work": {"claim": "work", "sub_path": "runs"}, "queue": "research", "priority": "high",
        "shared_memory_gib": 32, "trust": {"config_map": "company-ca", "key": "bundle"},
    }
)  # fmt: skip
RESOURCES = Resources(nodes=4, gpus=8, gpu_type="h100", cpus=96, memory_gib=1000, deadline_hours=50)


def test_the_job_is_one_that_the_trainer_knows():
    job = train_job("run-1", "sft", ["python", "-m", "x"], RESOURCES, PROFILE)
    parsed = models.TrainerV1alpha1TrainJob.from_dict(job)

    assert parsed is not None
    written = parsed.to_dict()
    assert written == job, "the trainer's models do not know a field"
    assert written["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"  # of this namespace only
    trainer = parsed.spec.trainer
    assert (trainer.num_nodes, trainer.num_proc_per_node) == (4, 8)
    limits = {k: v.to_dict() for k, v in trainer.resources_per_node.limits.items()}
    assert limits == {"cpu": "96", "memory": "1024000Mi", "nvidia.com/gpu": "8"}
    assert parsed.spec.active_deadline_seconds == 180_000
    assert parsed.metadata.labels["kueue.x-k8s.io/queue-name"] == "research"
    (jobs,) = written["spec"]["runtimePatches"]
    (node,) = jobs["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert {"name": "trust", "configMap": {"name": "company-ca"}} in pod["volumes"]
    assert {"name": "trust", "mountPath": "/etc/caravan/trust"} in (
        pod["containers"][0]["volumeMounts"]
    )
    variables = {e["name"]: e.get("value") for e in trainer.to_dict()["env"]}
    assert variables["SSL_CERT_FILE"] == "/etc/caravan/trust/bundle"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_the_name_of_a_job_is_the_same_for_each_attempt_and_fits_kubernetes():
    names = [job_name("a-run", "sft"), job_name("a-run", "sft"), job_name("b-run", "sft"),
             job_name("a-run", "respond-qwen-2.5-72b" * 3)]  # fmt: skip

    assert names[0] == names[1] != names[2]
    assert all(len(name) <= 45 and name.strip("-") == name and "." not in name for name in names)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_train_one_model(undisturbed, mini, tmp_path):
    """What a TrainJob runs on each node, as processes that meet over the network."""
    settings = Settings(home=shutil.copytree(undisturbed.home, tmp_path / "home"))
    recipe = load_recipe(mini, ["sft.resources.nodes=2", "sft.resources.cpus=1"])
    with Registry(settings.resolved_registry_url) as registry:
        inputs = {s["name"]: s for s in undisturbed.show()["stages"]}
        given = {
            "model": inputs["base"]["artifacts"]["model"],
            "dataset": inputs["mix"]["artifacts"]["dataset"],
        }
        run_id = registry.create_run(
            recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
            recipe_digest=recipe_digest(recipe),
        )  # fmt: skip
    port = free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "caravan_pipelines.on_nodes", run_id, "sft", json.dumps(given)],
            env=os.environ | settings.environment() | {
                "CARAVAN_HOME": str(tmp_path / str(rank)),
                "CARAVAN_REGISTRY_URL": settings.resolved_registry_url,
                "CARAVAN_STORE_URL": settings.resolved_store_url,
                "PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "1",
                "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
            },
        )
        for rank in (0, 1)
    ]  # fmt: skip
    assert [node.wait(900) for node in nodes] == [0, 0]

    with Registry(settings.resolved_registry_url) as registry:
        (stage,) = registry.stage_runs(run_id)
        losses = [m for m in registry.metrics(stage.id) if m.name == "loss"]
    assert stage.state is State.SUCCEEDED
    assert set(stage.outputs) == {"model"}
    assert len({point.step for point in losses}) == len(losses) > 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_are_pods_and_one_that_is_lost_comes_back(
    cluster, namespace, stage_environment, cluster_settings, undisturbed
):
    """What a TrainJob runs on each node, as pods that meet over the cluster's network."""
    settings = cluster_settings
    run_id, given = sft_on_two_nodes(undisturbed, settings)
    cluster.core.create_namespaced_service(namespace, ranks_service())

    def start(rank: int) -> None:
        cluster.start(namespace, rank_pod(cluster, rank, stage_environment, run_id, given))

    start(0)
    start(1)
    with Registry(settings.resolved_registry_url) as registry:

        def steps() -> list[int]:
            found = [m for stage in registry.stage_runs(run_id) for m in registry.metrics(stage.id)]
            return [m.step for m in found if m.name == "loss"]

        until(lambda: len(steps()) >= 3, 600)
        cluster.core.delete_namespaced_pod("node-1", namespace, grace_period_seconds=0)
        lost_at = max(steps())
        until(lambda: cluster.pod(namespace, "node-1") is None)
        start(1)
        until(lambda: registry.stage_runs(run_id)[0].state.finished, 900)

        (stage,) = registry.stage_runs(run_id)
        assert stage.state is State.SUCCEEDED, stage.error
        assert lost_at < max(steps()), "the pod was lost when all was done"
        assert sorted(steps()) == list(range(1, max(steps()) + 1))
    assert [cluster.wait_for_end(namespace, f"node-{rank}") for rank in (0, 1)] == ["Succeeded"] * 2


def sft_on_two_nodes(source: Caravan, settings: Settings) -> tuple[str, dict[str, str]]:
    """A run that has but its SFT before it, and what that reads, from another run's store."""
    recipe = load_recipe(MINI, ["sft.resources.nodes=2", "sft.resources.cpus=1", "sft.zero_stage=2",
                                "sft.save_steps=2", "sft.num_train_epochs=6"])  # fmt: skip
    stages = {s["name"]: s["artifacts"] for s in source.show()["stages"]}
    given = {"model": stages["base"]["model"], "dataset": stages["mix"]["dataset"]}
    there, here = open_store(source.home / "store"), open_store(settings=settings)
    with Registry(settings.resolved_registry_url) as registry:
        for kind, digest in given.items():
            artifact = here.put(there.fetch(digest), kind)
            assert artifact.digest == digest
            registry.add_artifact(artifact, here.uri(digest))
        run_id = registry.create_run(
            recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
            recipe_digest=recipe_digest(recipe),
        )  # fmt: skip
    return run_id, given


def ranks_service() -> client.V1Service:
    """Gives the pods names, as JobSet's does."""
    return client.V1Service(
        metadata=client.V1ObjectMeta(name="ranks"),
        spec=client.V1ServiceSpec(
            cluster_ip="None", selector={"ranks": "sft"}, publish_not_ready_addresses=True
        ),
    )


def rank_pod(cluster, rank: int, environment: str, run_id: str, given: dict[str, str]) -> dict:
    pod = restricted.pod(
        f"node-{rank}", cluster.image("stage-cpu"),
        ["python3", "-m", "caravan_pipelines.on_nodes", run_id, "sft", json.dumps(given)],
        environment_secret=environment,
        variables={
            "PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "node-0.ranks", "PET_MASTER_PORT": "29400",
        },
    )  # fmt: skip
    pod["metadata"]["labels"]["ranks"] = "sft"
    pod["spec"] |= {"hostname": f"node-{rank}", "subdomain": "ranks"}
    return pod


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# --- through the API ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(cluster) -> Iterator[None]:
    """The custom resources of Kubeflow Trainer, as far as a client sees them."""
    api = client.ApiextensionsV1Api(cluster.api)
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd = {
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": PLURAL, "singular": "trainjob", "kind": "TrainJob"},
            "versions": [
                {
                    "name": VERSION, "served": True, "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": anything, "status": anything}}},
                }
            ],
        },
    }  # fmt: skip
    api.create_custom_resource_definition(crd)
    time.sleep(2)
    yield
    api.delete_custom_resource_definition(f"{PLURAL}.{GROUP}")


class Job:
    """A TrainJob being waited for in a thread, and the controller's part of its life."""

    def __init__(self, cluster, namespace: str, name: str = "sft") -> None:
        profile = PROFILE.derive(namespace=namespace)
        self.manifest = train_job("run-1", name, ["true"], Resources(nodes=2), profile)
        self.name = self.manifest["metadata"]["name"]
        self._cluster, self._namespace = cluster, namespace
        self._objects = client.CustomObjectsApi(cluster.api)
        self.lines: list[str] = []
        self.error: Exception | None = None

    def wait(self) -> threading.Thread:
        def run() -> None:
            try:
                jobs = TrainJobs(self._cluster.api, self._namespace)
                jobs.run(self.manifest, self.lines.append, poll_seconds=0.3)
            except Exception as error:
                self.error = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        until(lambda: self.found() is not None)
        return thread

    def make(self) -> dict:
        return self._objects.create_namespaced_custom_object(
            GROUP, VERSION, self._namespace, PLURAL, self.manifest
        )

    def found(self) -> dict | None:
        try:
            return self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self.name
            )
        except client.ApiException:
            return None

    def become(self, condition: str, message: str = "") -> None:
        status = {"conditions": [{
            "type": condition, "status": "True", "reason": condition, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}  # fmt: skip
        self._objects.patch_namespaced_custom_object_status(
            GROUP, VERSION, self._namespace, PLURAL, self.name, {"status": status}
        )

    def start_pod(self, number: int, script: str, memory: str = "64Mi") -> str:
        security = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 10001,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip
        container = {
            "name": "node", "image": self._cluster.image("stage-cpu"),
            "command": ["python", "-c", script], "securityContext": security,
            "resources": {"limits": {"memory": memory}},
        }  # fmt: skip
        return self._cluster.start(
            self._namespace,
            {
                "metadata": {
                    "name": f"{self.name}-node-0-{number}",
                    "labels": {"jobset.sigs.k8s.io/jobset-name": self.name},
                },
                "spec": {
                    "restartPolicy": "Never", "containers": [container],
                    "serviceAccountName": "stage",
                },
            },
        )  # fmt: skip


def test_a_cluster_without_the_trainer_is_told_what_to_install(cluster, namespace):
    job = Job(cluster, namespace)
    jobs = TrainJobs(cluster.api, namespace)
    with pytest.raises(StageError, match=r"install Kubeflow Trainer 2\.2 or later"):
        jobs.run(job.manifest, print)


def test_a_job_is_followed_to_its_end_and_removed(cluster, trainer, namespace):
    job = Job(cluster, namespace)
    thread = job.wait()
    job.become("Suspended", "waits in queue research")
    until(lambda: any("waits in queue research" in line for line in job.lines))
    for number in (0, 1):
        name = job.start_pod(number, f"print('rank {number} of 2')")
        cluster.wait_for_end(namespace, name)
    until(lambda: any("rank 1 of 2" in line for line in job.lines))
    job.become("Complete")
    thread.join(60)

    assert job.error is None
    assert sum("rank 0 of 2" in line for line in job.lines) == 1
    assert "[node-0-1] rank 1 of 2" in job.lines
    until(lambda: job.found() is None)


def test_a_running_job_is_adopted_by_the_next_attempt(cluster, trainer, namespace):
    made = Job(cluster, namespace).make()  # by an attempt whose pod is gone without a word
    second = Job(cluster, namespace)
    thread = second.wait()
    until(lambda: any("runs already" in line for line in second.lines))

    assert second.found()["metadata"]["uid"] == made["metadata"]["uid"]
    second.become("Complete")
    thread.join(60)
    assert second.error is None


def test_a_failed_job_says_what_its_pods_died_of(cluster, trainer, namespace):
    job = Job(cluster, namespace)
    thread = job.wait()
    name = job.start_pod(0, "x = bytearray(10**9)", memory="48Mi")
    cluster.wait_for_end(namespace, name)
    job.become("Failed", "BackoffLimitExceeded")
    thread.join(60)

    assert isinstance(job.error, StageError)
    assert "killed for memory: it needed more than 48Mi" in str(job.error)
    until(lambda: job.found() is None)


def test_jobs_of_a_cancelled_run_are_removed(cluster, trainer, namespace):
    job = Job(cluster, namespace)
    job.wait()

    assert TrainJobs(cluster.api, namespace).delete_of_run("run-1") == [job.name]
    until(lambda: isinstance(job.error, StageError))
