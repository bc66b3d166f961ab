"""Whether the images of the stages can be had."""

from __future__ import annotations

import urllib.error
import urllib.request

from caravan.cluster.profile import load_profile
from caravan.errors import CaravanError
from caravan.settings import Settings
from caravan_pipelines.doctor import cluster
from caravan_pipelines.doctor.finding import NotHereError

MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
HTTP_SECONDS = 10


def images(settings: Settings) -> str:
    """Each image of the profile is on a node already, or its registry has it.

    Raises:
        CaravanError: one is nowhere, or has no fixed version.
        NotHereError: a registry cannot be asked from here; the nodes may well reach it.
    """
    if not settings.kfp_url and not settings.cluster_profile:
        raise NotHereError("runs are executed on this machine, without images")
    wanted = load_profile(settings).images
    present = _on_nodes()
    said, unseen = [], False
    for image in sorted({wanted.cpu, wanted.gpu}):
        name, version = split(image)
        if version in ("", "latest"):
            raise CaravanError(f"{image} names no version; write a tag or a digest in the profile")
        if any(known == image or known.endswith("/" + image) for known in present):
            said.append(f"{image} is on the nodes")
            continue
        try:
            said.append(f"{image} {_in_registry(image, name, version)}")
        except NotHereError as reason:
            said.append(f"{image} {reason}")
            unseen = True
    if unseen:
        raise NotHereError("; ".join(said))
    return "; ".join(said)


def split(image: str) -> tuple[str, str]:
    """The name of an image, and its tag or digest; empty where it has none."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, "")


def _on_nodes() -> set[str]:
    from kubernetes.client import ApiException, CoreV1Api

    try:
        nodes = CoreV1Api(cluster.api()).list_node(_request_timeout=cluster.CONNECT_SECONDS).items
    except (NotHereError, ApiException, OSError):
        return set()  # asked of the registry, then
    return {name for node in nodes for image in node.status.images or () for name in image.names}


def _in_registry(image: str, name: str, version: str) -> str:
    host, slash, path = name.partition("/")
    if not slash or not ("." in host or ":" in host):  # localhost/...: of podman, no registry
        raise NotHereError("names no registry, so only the nodes know whether they have it")
    scheme = "http" if host.startswith(("localhost", "127.0.0.1")) else "https"
    request = urllib.request.Request(
        f"{scheme}://{host}/v2/{path}/manifests/{version}",
        headers={"Accept": MANIFESTS},
        method="HEAD",
    )
    try:
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS):
            return "is in its registry"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return "is in a registry that asks for credentials, which only the nodes have"
        raise CaravanError(
            f"{image}: its registry answers {error.code}; push it with `make images`, or correct "
            "`images` in the cluster profile"
        ) from error
    except OSError as error:
        raise NotHereError(f"is in a registry that does not answer from here: {error}") from error
