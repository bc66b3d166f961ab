"""Pods under the restricted profile of the Pod Security Standards.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

USER = 10001
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUMES = {
    "config_map", "csi", "downward_api", "empty_dir", "ephemeral", "persistent_volume_claim",
    "projected", "secret",
}  # fmt: skip


def pod(
    name: str,
    image: str,
    command: Sequence[str],
    *,
    environment_secret: str = "",
    variables: Mapping[str, str] | None = None,
    service_account: str = "stage",
    user: int = USER,
    resources: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod of one container, that may write to /tmp and to /var/lib/caravan only."""
    mounts = {"tmp": "/tmp", "work": "/var/lib/caravan"}
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": k, "value": v} for k, v in (variables or {}).items()],
        "envFrom": [{"secretRef": {"name": environment_secret}}] if environment_secret else [],
        "resources": dict(resources or {}),
        "volumeMounts": [{"name": k, "mountPath": v} for k, v in mounts.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": k, "emptyDir": {}} for k in mounts],
        },
    }


def violations(pod: Any) -> list[str]:
    """What a pod, as read from the API, does that the restricted profile forbids.

    Read-only root file systems and tokens are ours to ask; the profile leaves them open.
    """
    spec = pod.spec
    found = [
        f"{what} is set" for what in ("host_network", "host_pid", "host_ipc") if getattr(spec, what)
    ]
    if spec.service_account_name in (None, "", "default"):
        found.append("no service account of its own")
    for volume in spec.volumes or []:
        kinds = {k for k, v in volume.to_dict().items() if v is not None and k != "name"}
        if not kinds <= VOLUMES:
            found.append(f"volume {volume.name} is of kind {', '.join(sorted(kinds))}")
    for container in [*(spec.init_containers or []), *spec.containers]:
        found += [f"{container.name}: {what}" for what in _container(container, spec)]
    return found


def _container(container: Any, spec: Any) -> list[str]:
    own, shared = container.security_context, spec.security_context

    def setting(name: str) -> Any:
        value = getattr(own, name, None)
        return getattr(shared, name, None) if value is None else value

    mounts = container.volume_mounts or []
    seccomp = setting("seccomp_profile")
    capabilities = getattr(own, "capabilities", None)
    checks = {
        "mounts the service account's token": TOKEN not in {m.mount_path for m in mounts},
        "privileged": not getattr(own, "privileged", None),
        "may escalate its privileges": getattr(own, "allow_privilege_escalation", None) is False,
        "may run as root": setting("run_as_non_root") is True and setting("run_as_user") != 0,
        "has no seccomp profile": seccomp is not None
        and seccomp.type in ("RuntimeDefault", "Localhost"),
        "keeps capabilities": capabilities is not None
        and "ALL" in (capabilities.drop or [])
        and set(capabilities.add or []) <= {"NET_BIND_SERVICE"},
        "has a host port": not any(p.host_port for p in container.ports or []),
        "can write its root file system": getattr(own, "read_only_root_filesystem", None) is True,
    }
    return [what for what, good in checks.items() if not good]
