"""The cluster profile: what an installation gives to the pods of every run.

A recipe says what a stage needs (`resources`); the profile says how this cluster provides it. It
is one YAML file, named by `CARAVAN_CLUSTER_PROFILE`:

    namespace: research
    images: {cpu: registry.example.com/caravan/stage-cpu:0.1.0}
    secrets: [{name: caravan, env: {registry-url: CARAVAN_REGISTRY_URL}}]
    gpus:
      h100: {node_selector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from caravan.errors import SettingsError
from caravan.recipe import Config
from caravan.settings import Settings

VERSION = "0.1.0"
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,253}$")]


class Images(Config):
    cpu: str = f"caravan/stage-cpu:{VERSION}"
    """Stages without GPUs."""
    gpu: str = f"caravan/stage-gpu:{VERSION}"
    """Stages with GPUs."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


class Toleration(Config):
    key: str = ""
    """Of the taint; empty tolerates every one."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class GpuNodes(Config):
    """Where the GPUs of one type are."""

    resource: Label = "nvidia.com/gpu"
    node_selector: dict[Label, str] = Field(default={})
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)


class EnvironmentFrom(Config):
    """Keys of a Secret or ConfigMap that become environment variables."""

    name: str
    env: Annotated[dict[str, str], Field(min_length=1)]
    """Key to variable."""


class Trust(Config):
    """A ConfigMap with the certificate authorities that pods trust, instead of their image's."""

    config_map: str
    key: str = "ca.crt"


class Volume(Config):
    """A claim that exists and that pods on several nodes may write (ReadWriteMany)."""

    claim: str
    sub_path: str = ""


class Retries(Config):
    """How often a stage is tried again."""

    count: NonNegativeInt = 2
    """After failures: errors, memory, deadlines."""
    interruptions: NonNegativeInt = 10
    """After pods that were lost, drained or evicted and those that asked to be continued; these
    are not failures."""
    backoff_seconds: PositiveInt = 60
    """Pause before each retry."""


class Trainer(Config):
    """Jobs on several nodes, by Kubeflow Trainer."""

    runtime: str = "caravan-torch"
    """TrainingRuntime, in the namespace of the pods, that the jobs are made from."""
    token_secret: str = ""
    """Secret (type kubernetes.io/service-account-token) of the account that may create TrainJobs;
    only the pods that wait for such a job get it. Empty takes the pod's own account."""
    cpus: PositiveInt = 1
    memory_gib: PositiveFloat = 1.0
    """Of the pod that waits."""


class ClusterProfile(Config):
    namespace: str = "kubeflow"
    """Where the pods of runs are."""
    service_account: str = "caravan-stage"
    images: Images = Images()
    node_selector: dict[Label, str] = Field(default={})
    tolerations: tuple[Toleration, ...] = ()
    """Of every pod."""
    gpus: dict[str, GpuNodes] = Field(default={"": GpuNodes()})
    """By the recipe's `gpu_type`; the empty one is for recipes that name none."""
    environment: dict[str, str] = Field(default={})
    secrets: tuple[EnvironmentFrom, ...] = ()
    config_maps: tuple[EnvironmentFrom, ...] = ()
    trust: Trust | None = None
    """None trusts what the image does."""
    work: Volume | None = None
    """For work in progress: checkpoints survive their pod. None takes a disk of the node, and a
    stage whose pod is lost begins anew."""
    model_cache: Volume | None = None
    """For models and datasets of the hub, so that they are loaded once."""
    shared_memory_gib: PositiveFloat | None = None
    """Size of /dev/shm of pods with GPUs whose recipe does not say; None keeps the node's."""
    priority: str = ""
    """Kueue WorkloadPriorityClass of the pods (Kubeflow Pipelines sets no pod priority class)."""
    queue: str = ""
    """Kueue LocalQueue of the pods whose recipe names none."""
    retries: Retries = Retries()
    pool_parallelism: NonNegativeInt = 0
    """Pods of one fan-out at the same time; 0 leaves it to the scheduler."""
    pod_overhead_seconds: NonNegativeFloat = 20.0
    """What starting a step costs here, for plans: Kubeflow's driver, scheduling, the container."""
    user_id: PositiveInt = 10001
    """User and group that containers run as."""
    trainer: Trainer = Trainer()

    def gpu_nodes(self, gpu_type: str) -> GpuNodes:
        """Where the GPUs called `gpu_type` in recipes are.

        Raises:
            SettingsError: the profile does not say.
        """
        if gpu_type not in self.gpus:
            known = ", ".join(repr(name) for name in sorted(self.gpus) if name) or "none"
            raise SettingsError(
                f"the recipe asks for GPUs of type {gpu_type or 'any'!r}, the cluster profile "
                f"knows {known}; add it under `gpus` with its node selector"
            )
        return self.gpus[gpu_type]


def load_profile(settings: Settings) -> ClusterProfile:
    """The profile that `CARAVAN_CLUSTER_PROFILE` names, or the default one.

    Raises:
        SettingsError: it cannot be read, or says something that cannot be used.
    """
    if not settings.cluster_profile:
        return ClusterProfile()
    inline = settings.cluster_profile.lstrip().startswith("{")
    path = "given inline" if inline else Path(settings.cluster_profile)
    try:
        text = settings.cluster_profile if inline else Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        return ClusterProfile.model_validate(content)
    except OSError as error:
        raise SettingsError(f"CARAVAN_CLUSTER_PROFILE={path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"cluster profile {path}: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"cluster profile {path}: {'; '.join(problems)}") from error
