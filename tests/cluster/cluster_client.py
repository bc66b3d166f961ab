"""What tests do with a cluster, over its API."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kubernetes import client, config

T = TypeVar("T")

PATIENCE_SECONDS = 180.0
"""How long a pod may take to start on a machine that does other things too."""
GPU = "nvidia.com/gpu"
ENDED = ("Succeeded", "Failed")


class Cluster:
    """A cluster, and where it finds the project's images."""

    def __init__(self, kubeconfig: str, images: str, tag: str) -> None:
        self.kubeconfig = kubeconfig
        self._images, self._tag = images, tag
        self.api = config.new_client_from_config(kubeconfig)
        self.core = client.CoreV1Api(self.api)
        self.batch = client.BatchV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)

    def image(self, name: str) -> str:
        """Full name of an image: `stage-cpu`, `dashboard`, `postgres`, `seaweedfs`, `vllm`."""
        return f"{self._images}/{name}:{self._tag}"

    @contextmanager
    def new_namespace(self, prefix: str, *, restricted: bool = False) -> Iterator[str]:
        """A namespace that goes, with everything in it, at the end."""
        name = f"{prefix}-{uuid.uuid4().hex[:6]}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"} if restricted else {}
        self.core.create_namespace(
            client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels))
        )
        try:
            yield name
        finally:
            self.core.delete_namespace(name)

    def new_service_account(self, namespace: str, name: str) -> None:
        self.core.create_namespaced_service_account(
            namespace,
            client.V1ServiceAccount(
                metadata=client.V1ObjectMeta(name=name), automount_service_account_token=False
            ),
        )

    def new_secret(self, namespace: str, name: str, values: Mapping[str, str]) -> str:
        self.core.create_namespaced_secret(
            namespace,
            client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data=dict(values)),
        )
        return name

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        data = self.core.read_namespaced_secret(name, namespace).data
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def new_claim(self, namespace: str, name: str, size: str) -> str:
        """A volume that several pods may write."""
        spec = client.V1PersistentVolumeClaimSpec(
            access_modes=["ReadWriteMany"],
            resources=client.V1ResourceRequirements(requests={"storage": size}),
        )
        claim = client.V1PersistentVolumeClaim(metadata=client.V1ObjectMeta(name=name), spec=spec)
        self.core.create_namespaced_persistent_volume_claim(namespace, claim)
        return name

    def set_extended_resource(self, name: str, count: int | None) -> None:
        """Say that the first node has so many of a device; None takes them away."""
        node = self.core.list_node().items[0]
        if count is None and name not in node.status.capacity:
            return
        path = f"/status/capacity/{name.replace('/', '~1')}"
        change = {"op": "add", "path": path, "value": str(count)}
        if count is None:
            change = {"op": "remove", "path": path}
        self.api.call_api(
            f"/api/v1/nodes/{node.metadata.name}/status", "PATCH", body=[change],
            header_params={"Content-Type": "application/json-patch+json"},
            auth_settings=["BearerToken"],
        )  # fmt: skip

    def address_of_this_machine(self) -> str:
        """The address at which pods reach this machine."""
        (node, *_) = self.core.list_node().items
        address = next(a.address for a in node.status.addresses if a.type == "InternalIP")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            return str(probe.getsockname()[0])

    # --- pods -------------------------------------------------------------------------------

    def start(self, namespace: str, pod: Mapping[str, Any]) -> str:
        """Create a pod; gives its name."""
        created = self.core.create_namespaced_pod(namespace, dict(pod))
        return str(created.metadata.name)

    def run(self, namespace: str, pod: Mapping[str, Any]) -> str:
        """Create a pod and wait until it has succeeded; gives its log."""
        name = self.start(namespace, pod)
        phase = self.wait_for_end(namespace, name)
        log = self.log(namespace, name)
        assert phase == "Succeeded", f"pod {name} ended as {phase}:\n{log}"
        return log

    def pod(self, namespace: str, name: str) -> client.V1Pod | None:
        try:
            return self.core.read_namespaced_pod(name, namespace)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return None

    def wait_for_end(self, namespace: str, name: str) -> str:
        """The phase in which a pod ended."""

        def phase() -> str | None:
            found = str(self.core.read_namespaced_pod(name, namespace).status.phase)
            return found if found in ENDED else None

        return self.wait(phase, lambda: f"the end of {self.describe(namespace, name)}")

    def wait_until_ready(
        self, namespace: str, name: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        def ready() -> bool:
            status = self.core.read_namespaced_pod(name, namespace).status
            assert status.phase not in ENDED, self.describe(namespace, name)
            return any(c.type == "Ready" and c.status == "True" for c in status.conditions or [])

        self.wait(ready, lambda: f"readiness of {self.describe(namespace, name)}", seconds)

    def log(self, namespace: str, name: str) -> str:
        return read_log(self.core, namespace, name)

    def describe(self, namespace: str, name: str) -> str:
        """A pod's status and events, for people."""
        status = self.core.read_namespaced_pod(name, namespace).status
        events = self.core.list_namespaced_event(
            namespace, field_selector=f"involvedObject.name={name}"
        ).items
        lines = [f"pod {name}: {status.phase} {status.message or ''}"]
        lines += [f"  {e.reason}: {e.message}" for e in events]
        if any(c.state.running or c.state.terminated for c in status.container_statuses or []):
            lines.append(self.log(namespace, name)[-4000:])
        return "\n".join(lines)

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to a port of a pod or service."""
        process = subprocess.Popen(
            ["kubectl", "port-forward", "--kubeconfig", self.kubeconfig, "--namespace", namespace,
             target, f":{port}"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            assert match, f"kubectl port-forward to {target} said {line!r}"
            yield int(match[1])
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def reach(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """`host:port` at which this machine reaches a pod: its own address where that leads to
        it, as on the node of `node.sh`, else a forwarded port, which breaks more easily."""
        address = self.core.read_namespaced_pod(pod, namespace).status.pod_ip
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            with self.forward(namespace, f"pod/{pod}", port) as forwarded:
                yield f"127.0.0.1:{forwarded}"
        else:
            yield f"{address}:{port}"

    def wait(
        self,
        found: Callable[[], T | None],
        what: Callable[[], str] = lambda: "it",
        seconds: float = PATIENCE_SECONDS,
    ) -> T:
        """The first value of `found` that is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := found():
                return value
            time.sleep(0.3)
        raise AssertionError(f"waited {seconds:.0f} s in vain for {what()}")


def read_log(core: client.CoreV1Api, namespace: str, pod: str) -> str:
    """A pod's log as it is; the client would parse one that looks like JSON."""
    answer = core.read_namespaced_pod_log(pod, namespace, _preload_content=False)
    return answer.data.decode(errors="replace")
