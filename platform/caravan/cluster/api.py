"""The Kubernetes API, where this process may use it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caravan.errors import CaravanError, require

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REMEDIES = {
    401: "; check the account's token or the kubeconfig",
    403: "; have that right given to the account, or take one that has it (KUBECONFIG)",
}


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


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Turn the client's errors into ours: what the API says, and what to do.

    A refusal names the right that is missing, and who lacks it.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise CaravanError(
            f"the Kubernetes API answers {error.status} {error.reason}{_message(error)}"
            f"{REMEDIES.get(error.status, '')}"
        ) from error
    except (HTTPError, OSError) as error:
        raise CaravanError(
            f"the Kubernetes API does not answer: {error}; check the kubeconfig and the network"
        ) from error


def _message(error: Any) -> str:
    """Of the `Status` that the API answers with; others, such as proxies, may answer anything."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return f": {json.loads(error.body)['message']}"
    return ""
