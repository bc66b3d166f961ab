"""Kubeflow Pipelines, with the settings' address and credentials, its errors in our words."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

from caravan.errors import CaravanError, SettingsError, require
from caravan.settings import Settings


class KubeflowError(CaravanError):
    """Kubeflow Pipelines refuses, or does not answer."""


def open_client(settings: Settings) -> Any:
    """A `kfp.Client` with the settings' address and credentials.

    Without a token, the file of one, or a cookie, a pod takes its service account's token if one
    was made for Kubeflow Pipelines; everybody else comes without.

    Raises:
        SettingsError: no address is set, or a header cannot be read.
        KubeflowError: it does not answer.
    """
    if not settings.kfp_url:
        raise SettingsError(
            "CARAVAN_KFP_URL is not set: give the address of Kubeflow Pipelines, such as "
            "http://localhost:8888 (kubectl port-forward -n kubeflow svc/ml-pipeline 8888)"
        )
    kfp = require("kfp", extra="pipelines", feature="launching on Kubeflow Pipelines")
    credentials = None
    if not settings.kfp_token.get_secret_value():
        credentials = _service_account(settings.kfp_token_file)
    headers = dict(_headers(settings))
    with warnings.catch_warnings(), in_words(settings):
        warnings.simplefilter("ignore")

        class Client(kfp.Client):  # type: ignore[misc, name-defined]
            """With our headers, which it has no place for, from its first call on."""

            def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
                _add_headers(self, headers)
                return self._healthz_api.healthz_service_get_healthz()

        client = Client(
            host=settings.kfp_url,
            namespace=settings.kfp_namespace or "kubeflow",  # its word for finding out itself
            existing_token=settings.kfp_token.get_secret_value() or None,
            credentials=credentials,
            cookies=settings.kfp_cookies.get_secret_value() or None,
            ssl_ca_cert=settings.kfp_ca_file or None,
        )
    _add_headers(client, headers)
    return client


def _add_headers(client: Any, headers: dict[str, str]) -> None:
    for api in ("_run_api", "_experiment_api", "_healthz_api"):
        getattr(client, api).api_client.default_headers.update(headers)


def _service_account(token_file: str) -> Any | None:
    from kfp.client import KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials

    path = token_file or KF_PIPELINES_SA_TOKEN_PATH
    if Path(path).exists():
        return ServiceAccountTokenVolumeCredentials(path)
    if token_file:
        raise SettingsError(f"CARAVAN_KFP_TOKEN_FILE={token_file}: there is no such file")
    return None


def _headers(settings: Settings) -> list[tuple[str, str]]:
    found = []
    for line in filter(str.strip, settings.kfp_headers.get_secret_value().splitlines()):
        name, colon, value = line.partition(":")
        if not colon:
            raise SettingsError("CARAVAN_KFP_HEADERS: write one `Name: value` a line")
        found.append((name.strip(), value.strip()))
    return found


@contextlib.contextmanager
def in_words(settings: Settings) -> Any:
    """Turn the client's errors into ours: where, what, and what to do."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    where = f"Kubeflow Pipelines at {settings.kfp_url}"
    try:
        yield
    except ApiException as error:
        if error.status in (401, 403):
            raise KubeflowError(
                f"{where} refuses us ({error.status}): give CARAVAN_KFP_TOKEN, "
                "CARAVAN_KFP_TOKEN_FILE or CARAVAN_KFP_COOKIES, and the right "
                f"CARAVAN_KFP_NAMESPACE (now {settings.kfp_namespace or 'none'})"
            ) from error
        raise KubeflowError(f"{where}: {error.status} {error.reason}: {error.body}") from error
    except (HTTPError, OSError) as error:
        raise KubeflowError(
            f"{where} does not answer: {error}; check CARAVAN_KFP_URL and CARAVAN_KFP_CA_FILE"
        ) from error
