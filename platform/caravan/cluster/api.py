"""The Kubernetes API, where this process may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caravan.errors import require

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def kubernetes_api(token_dir: Path | None = None) -> Any | None:
    """A client of the cluster we are in, else of the kubeconfig's; None where there is neither.

    `token_dir` holds another service account's `token` and `ca.crt` than the pod's own.
    """
    kubernetes = require("kubernetes", extra="pipelines", feature="the Kubernetes API")
    from kubernetes.config.incluster_config import InClusterConfigLoader

    config = kubernetes.client.Configuration()
    directory = token_dir if token_dir and (token_dir / "token").exists() else SERVICE_ACCOUNT
    try:
        InClusterConfigLoader(
            token_filename=str(directory / "token"), cert_filename=str(directory / "ca.crt")
        ).load_and_set(config)
    except kubernetes.config.ConfigException:
        try:
            kubernetes.config.load_kube_config(client_configuration=config)
        except kubernetes.config.ConfigException:
            return None
    return kubernetes.client.ApiClient(config)


def as_dict(api: Any, found: Any) -> Any:
    """An object of the client as the API writes it, in camel case."""
    return api.sanitize_for_serialization(found)
