"""The chart's values for a trial on the cluster of the tests.

PostgreSQL and S3 run from images made of Debian's and Python's packages, which stand in for the
official ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster_client import Cluster

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
