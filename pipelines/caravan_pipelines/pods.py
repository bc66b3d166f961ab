"""The pods of a pipeline on Kubeflow Pipelines: each task's resources, through `kfp-kubernetes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import kubernetes

from caravan.cluster.pod import (
    CACHE_DIR,
    NODE_LABEL,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    TEMPORARY_DIR,
    TRUST_DIR,
    WORK_DIR,
    Pod,
    label_value,
    pod_environment,
    pod_of,
)
from caravan.cluster.profile import ClusterProfile
from caravan.recipe import Resources
from caravan_pipelines.graph import Node
from caravan_pipelines.on_nodes import TRAINER_TOKEN_DIR

RETRY_WINDOW = "8760h"
"""How long after its first attempt began a step may be tried again, and the last attempt may run:
that is what Argo Workflows makes of `backoff_max_duration`. A year stands for no limit."""


@dataclass(frozen=True)
class Placed:
    """One task of the pipeline: the stages in it, and the pod it asks for."""

    nodes: tuple[str, ...]
    pod: Pod
    pods: int
    """How many such pods: the iterations of a fan-out."""
    job_nodes: int = 1
    """Nodes of the TrainJob that the pod waits for; 1 for none."""


@dataclass
class ClusterPlacement:
    """`Placement` on a cluster; `placed` lists what was asked for."""

    profile: ClusterProfile
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    dashboard_url: str = ""
    one_pod: bool = True
    placed: list[Placed] = field(default_factory=list)

    @property
    def at_once(self) -> int:
        return self.profile.pool_parallelism

    def kind(self, node: Node) -> object:
        resources = node.resources
        return repr((pod_of(resources, self.profile), resources.nodes > 1))

    def place(self, task: Any, nodes: Sequence[Node]) -> None:
        names = tuple(node.name for node in nodes)
        resources = nodes[0].resources
        waits = resources.nodes > 1
        pod = pod_of(self._own(resources), self.profile)
        together = len({node.stage for node in nodes}) > 1
        self.placed.append(Placed(names, pod, 1 if together else len(names), resources.nodes))
        _set_resources(task, pod)
        _set_environment(task, self.profile, self.dashboard_url)
        _set_volumes(task, self.profile, pod)
        _set_security(task, self.profile)
        _set_retries(task, self.profile)
        # The steps of a run are reused by its own keys; Kubeflow's cache would not look at files.
        task.set_caching_options(False)
        labels = {
            **self.labels,
            NODE_LABEL: label_value(names[0] if len(names) == 1 else nodes[0].stage),
        }
        if pod.queue and not waits:  # a TrainJob is queued itself
            labels[QUEUE_LABEL] = pod.queue
        if self.profile.priority:
            labels[PRIORITY_LABEL] = self.profile.priority
        for name, value in labels.items():
            kubernetes.add_pod_label(task, name, value)
        for name, value in self.annotations.items():
            kubernetes.add_pod_annotation(task, name, value)
        if waits:  # it makes a job for this cluster
            profile = self.profile.model_dump_json(exclude_defaults=True)
            task.set_env_variable("CARAVAN_CLUSTER_PROFILE", profile)
        if waits and self.profile.trainer.token_secret:
            kubernetes.use_secret_as_volume(
                task, self.profile.trainer.token_secret, str(TRAINER_TOKEN_DIR)
            )

    def _own(self, resources: Resources) -> Resources:
        """What the task's own pod needs: little, where it only waits for a job on many nodes. The
        deadline is the job's, which may stand in a queue before."""
        if resources.nodes == 1:
            return resources
        trainer = self.profile.trainer
        return resources.derive(
            nodes=1, gpus=0, gpu_type="", cpus=trainer.cpus, memory_gib=trainer.memory_gib,
            deadline_hours=None,
        )  # fmt: skip


def _set_resources(task: Any, pod: Pod) -> None:
    task.set_container_image(pod.image)
    task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpus:
        task.set_accelerator_type(pod.gpu_resource).set_accelerator_limit(pod.gpus)
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **_without_empty(toleration.model_dump()))
    if pod.deadline_seconds:
        kubernetes.set_timeout(task, pod.deadline_seconds)


def _set_environment(task: Any, profile: ClusterProfile, dashboard_url: str) -> None:
    for name, value in pod_environment(profile, dashboard_url).items():
        task.set_env_variable(name, value)
    for secret in profile.secrets:
        kubernetes.use_secret_as_env(task, secret.name, dict(secret.env))
    for config in profile.config_maps:
        kubernetes.use_config_map_as_env(task, config.name, dict(config.env))
    kubernetes.use_field_path_as_env(task, "CARAVAN_POD_NAME", "metadata.name")


def _set_volumes(task: Any, profile: ClusterProfile, pod: Pod) -> None:
    limit = pod.disk or None
    if profile.work:
        kubernetes.mount_pvc(task, profile.work.claim, WORK_DIR, sub_path=profile.work.sub_path)
    else:
        kubernetes.empty_dir_mount(task, "work", WORK_DIR, size_limit=limit)
    kubernetes.empty_dir_mount(task, "temporary", TEMPORARY_DIR, size_limit=limit)
    if cache := profile.model_cache:
        kubernetes.mount_pvc(task, cache.claim, CACHE_DIR, sub_path=cache.sub_path)
    if profile.trust:
        kubernetes.use_config_map_as_volume(task, profile.trust.config_map, TRUST_DIR)
    if pod.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shared-memory", "/dev/shm", medium="Memory", size_limit=pod.shared_memory
        )


def _set_security(task: Any, profile: ClusterProfile) -> None:
    # Kubeflow Pipelines itself (2.16 or newer) drops all capabilities, forbids privilege escalation
    # and takes the runtime's seccomp profile; with these the pod fits the restricted profile.
    kubernetes.set_security_context(
        task, run_as_user=profile.user_id, run_as_group=profile.user_id, run_as_non_root=True
    )
    kubernetes.set_image_pull_policy(task, profile.images.pull_policy)
    if profile.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(profile.images.pull_secrets))


def _set_retries(task: Any, profile: ClusterProfile) -> None:
    # Kubeflow Pipelines cannot tell a lost pod from a failure, so it retries for both; `run_step`
    # counts the failures and refuses when they are too many.
    if retries := profile.retries.count + profile.retries.interruptions:
        task.set_retry(
            num_retries=retries,
            backoff_duration=f"{profile.retries.backoff_seconds}s",
            backoff_factor=1,  # a growing pause would have no upper bound
            backoff_max_duration=RETRY_WINDOW,
        )


def _without_empty(values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
