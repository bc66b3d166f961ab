"""PostgreSQL and an S3 server as pods of the cluster, for the tests of one session."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import restricted
from cluster_client import Cluster
from kubernetes import client
from minio import Minio

USER, PASSWORD = "caravan", "caravan-test"
ACCESS_KEY, SECRET_KEY = "app", "appsecret"
BUCKET = "caravan"
POSTGRES_USER_ID = 999


@dataclass(frozen=True)
class Services:
    namespace: str
    postgres: str
    """`host:port` at which this machine reaches PostgreSQL."""
    s3: str

    def database_url(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@{self.postgres}/{database}"

    def settings(self, database: str) -> dict[str, Any]:
        """Settings for a process of this machine; one database has one store."""
        return {
            "registry_url": self.database_url(database),
            "store_url": f"s3://{BUCKET}/{database}",
            "s3_endpoint": f"http://{self.s3}",
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
        }

    def pod_environment(self, database: str) -> dict[str, str]:
        """Variables for a pod of any namespace, of the same registry and store."""
        host = f"postgres.{self.namespace}.svc.cluster.local"
        return {
            "CARAVAN_REGISTRY_URL": f"postgresql://{USER}:{PASSWORD}@{host}:5432/{database}",
            "CARAVAN_STORE_URL": f"s3://{BUCKET}/{database}",
            "CARAVAN_S3_ENDPOINT": f"http://s3.{self.namespace}.svc.cluster.local:8333",
            "CARAVAN_S3_ACCESS_KEY": ACCESS_KEY,
            "CARAVAN_S3_SECRET_KEY": SECRET_KEY,
        }


@contextmanager
def start_services(cluster: Cluster, namespace: str) -> Iterator[Services]:
    """PostgreSQL and S3 in a namespace."""
    cluster.new_service_account(namespace, "services")
    for name, pod, port in (
        ("postgres", _postgres(cluster), 5432),
        ("s3", _s3(cluster, namespace), 8333),
    ):
        cluster.start(namespace, pod)
        cluster.core.create_namespaced_service(
            namespace,
            client.V1Service(
                metadata=client.V1ObjectMeta(name=name),
                spec=client.V1ServiceSpec(
                    selector={"app": name},
                    ports=[client.V1ServicePort(port=port, protocol="TCP")],
                ),
            ),
        )
    with ExitStack() as stack:
        found = {}
        for name, port in (("postgres", 5432), ("s3", 8333)):
            cluster.wait_until_ready(namespace, name)
            found[name] = stack.enter_context(cluster.reach(namespace, name, port))
        _make_bucket(found["s3"])
        yield Services(namespace, **found)


def _postgres(cluster: Cluster) -> dict[str, Any]:
    pod = restricted.pod(
        "postgres", cluster.image("postgres"),
        ["docker-entrypoint.sh", "postgres", "-c", "fsync=off", "-c", "max_connections=300",
         "-c", "unix_socket_directories=/tmp"],
        variables={"POSTGRES_USER": USER, "POSTGRES_PASSWORD": PASSWORD, "PGDATA": "/tmp/data"},
        service_account="services", user=POSTGRES_USER_ID,
    )  # fmt: skip
    probe = ["pg_isready", "--host=127.0.0.1", f"--username={USER}"]
    return _with_probe(pod, {"exec": {"command": probe}, "periodSeconds": 1})


def _s3(cluster: Cluster, namespace: str) -> dict[str, Any]:
    identity = {
        "name": "app",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    secret = {"s3.json": json.dumps({"identities": [identity]})}
    cluster.new_secret(namespace, "s3", secret)
    pod = restricted.pod(
        "s3", cluster.image("seaweedfs"),
        ["weed", "server", "-dir=/tmp", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-filer", "-s3",
         "-s3.port=8333", "-s3.config=/etc/s3/s3.json", "-master.volumeSizeLimitMB=64",
         "-volume.max=100", "-master.telemetry=false"],
        service_account="services",
    )  # fmt: skip
    spec = pod["spec"]
    spec["volumes"].append({"name": "identities", "secret": {"secretName": "s3"}})
    spec["containers"][0]["volumeMounts"].append({"name": "identities", "mountPath": "/etc/s3"})
    return _with_probe(pod, {"tcpSocket": {"port": 8333}, "periodSeconds": 1})


def _with_probe(pod: dict[str, Any], probe: dict[str, Any]) -> dict[str, Any]:
    pod["spec"]["containers"][0]["readinessProbe"] = probe
    return pod


def _make_bucket(endpoint: str) -> None:
    store = Minio(endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False)
    deadline = time.monotonic() + 60
    while True:
        try:
            return store.make_bucket(BUCKET)
        except Exception:  # it listens before it can store
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
