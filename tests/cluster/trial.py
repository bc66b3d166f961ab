"""The chart's values for a trial on the cluster of the tests.

PostgreSQL and S3 run from images made of Debian's and Python's packages, which stand in for the
official ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cluster_client import Cluster

from caravan.settings import Settings

RELEASE = "trial"
CHART = Path(__file__).parents[2] / "helm" / "caravan"
SECONDS = 420
"""For an install with its hooks, on a machine that does other things too."""


def trial_values(cluster: Cluster) -> dict[str, Any]:
    def reference(name: str) -> dict[str, str]:
        repository, _, tag = cluster.image(name).rpartition(":")
        return {"repository": repository, "tag": tag}

    registry, _, _ = cluster.image("dashboard").rpartition("/dashboard:")
    tag = cluster.image("dashboard").rpartition(":")[2]
    return {
        "images": {
            "registry": registry,
            **{name: {"tag": tag} for name in ("dashboard", "stageCpu", "stageGpu")},
        },
        "postgres": {"enabled": True, "image": reference("postgres"), "storage": {"size": "1Gi"}},
        "s3": {
            "enabled": True, "image": reference("seaweedfs"), "userId": 10001,
            "storage": {"size": "1Gi"},
        },
    }  # fmt: skip


def reach(cluster: Cluster, namespace: str, component: str, port: int) -> Any:
    (pod,) = cluster.core.list_namespaced_pod(
        namespace, label_selector=f"app.kubernetes.io/component={component}"
    ).items
    return cluster.reach(namespace, pod.metadata.name, port)


def settings_of(
    cluster: Cluster, namespace: str, postgres: str, s3: str, directory: Path
) -> Settings:
    """Settings of this process for the release's registry and store."""
    database = cluster.secret(namespace, f"{RELEASE}-postgres")
    keys = cluster.secret(namespace, f"{RELEASE}-s3")
    return Settings(
        home=directory / "home",
        registry_url=re.sub(r"@[^/]+/", f"@{postgres}/", database["url"]),
        store_url="s3://caravan/artifacts",
        s3_endpoint=f"http://{s3}",
        s3_access_key=keys["access-key"],
        s3_secret_key=keys["secret-key"],
    )
