"""What is checked on every machine, and the list of all checks."""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from caravan.errors import CaravanError, StoreError
from caravan.registry import Registry
from caravan.registry.models import SCHEMA_VERSION
from caravan.settings import Settings
from caravan.store import open_store
from caravan_pipelines.doctor import cluster, gpus, images
from caravan_pipelines.doctor.finding import Check, NotHereError

HTTP_SECONDS = 10
GIB = 2**30
LEAST_FREE_GIB = 2.0
DISCOVERED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
"""What sign-in needs of a discovery document (OpenID Connect Discovery 1.0, section 3)."""


def all_checks(settings: Settings) -> list[Check]:
    """The checks of this environment, from what a run needs first to what it may use."""
    return [
        Check("work directory", lambda: work_directory(settings)),
        Check("registry", lambda: registry(settings)),
        Check("store", lambda: store(settings)),
        Check("kubeflow pipelines", lambda: kubeflow_pipelines(settings)),
        Check("kubernetes", lambda: cluster.reachable()),
        Check("kubernetes permissions", lambda: cluster.permissions(settings)),
        Check("training jobs", lambda: cluster.training_jobs(settings)),
        Check("images", lambda: images.images(settings)),
        Check("gpus", gpus.gpus),
        Check("identity provider", identity_provider),
    ]


def work_directory(settings: Settings) -> str:
    home = settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home) as file:
            file.write(b"may this process write here?\n")
    except OSError as error:
        raise CaravanError(
            f"{home}: {error.strerror}; make it writable, or point CARAVAN_HOME elsewhere"
        ) from error
    disk = os.statvfs(home)
    free = disk.f_bavail * disk.f_frsize / GIB
    if free < LEAST_FREE_GIB:
        raise CaravanError(
            f"{home} has {free:.1f} GiB free, too little for checkpoints; free some space, or "
            "point CARAVAN_HOME at another disk"
        )
    return f"{home}, {free:.0f} GiB free"


def registry(settings: Settings) -> str:
    """Reachable, of this version's schema, and writable."""
    with Registry(settings.resolved_registry_url) as opened:
        opened.heartbeat_run("")  # a write that changes no row
        runs = len(opened.list_runs(limit=1000))
        some = "1,000 runs or more" if runs == 1000 else f"{runs} runs"
        return f"{opened.url}, schema {SCHEMA_VERSION}, {some}"


def store(settings: Settings) -> str:
    """Takes an artifact, gives it back and deletes it."""
    opened = open_store(settings.resolved_store_url, settings)
    try:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "probe").write_text(uuid.uuid4().hex)
            digest = opened.put(Path(directory), "report").digest
        try:
            opened.verify(digest)
        finally:
            opened.delete(digest)
    except StoreError as error:
        raise CaravanError(
            f"{error}; CARAVAN_STORE_URL says where the store is, and we must be able to write, "
            "read and delete there (CARAVAN_S3_...: endpoint and keys of a bucket)"
        ) from error
    if opened.exists(digest):
        raise CaravanError(
            f"store {opened.url}: what is deleted stays; give the credentials the right to delete"
        )
    return f"{opened.url}: written, read, deleted"


def kubeflow_pipelines(settings: Settings) -> str:
    if not settings.kfp_url:
        raise NotHereError("CARAVAN_KFP_URL is not set: runs are executed on this machine")
    from caravan_pipelines.launch.kfp_client import open_client

    client = open_client(settings)
    try:
        client.list_runs(page_size=1, namespace=settings.kfp_namespace)
    except Exception as error:  # the client raises many kinds
        raise CaravanError(
            f"Kubeflow Pipelines at {settings.kfp_url} does not list runs: {error}; check "
            "CARAVAN_KFP_URL, CARAVAN_KFP_NAMESPACE and the credentials (CARAVAN_KFP_TOKEN, "
            "CARAVAN_KFP_TOKEN_FILE, CARAVAN_KFP_COOKIES)"
        ) from error
    return f"{settings.kfp_url}, namespace {settings.kfp_namespace}"


def identity_provider() -> str:
    from caravan.identity import load_identity

    identity = load_identity()
    if identity is None:
        raise NotHereError("none is set (CARAVAN_OIDC_...): the dashboard serves this machine only")
    url = identity.metadata_url
    document = _get_json(url)
    missing = [name for name in DISCOVERED if name not in document]
    if missing:
        raise CaravanError(f"{url} lacks {', '.join(missing)}; is CARAVAN_OIDC_ISSUER right?")
    told = str(document.get("issuer", ""))
    if told.rstrip("/") != identity.issuer.rstrip("/"):
        raise CaravanError(
            f"{url} says that its issuer is {told!r}, so every sign-in would be refused; set "
            "CARAVAN_OIDC_ISSUER to that"
        )
    return identity.issuer


def _get_json(url: str) -> dict[str, Any]:
    """
    Raises:
        CaravanError: it does not answer with a JSON object.
    """
    try:
        context = ssl.create_default_context()
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS, context=context) as answer:
            found = json.load(answer)
    except (OSError, ValueError) as error:
        raise CaravanError(
            f"{url} cannot be read: {error}; check CARAVAN_OIDC_ISSUER, and that this machine may "
            "reach it and trusts its certificate"
        ) from error
    if not isinstance(found, dict):
        raise CaravanError(f"{url} is no discovery document; check CARAVAN_OIDC_ISSUER")
    return found
