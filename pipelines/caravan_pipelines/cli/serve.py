"""Serve a model of the store on the cluster, and stop serving it."""

from __future__ import annotations

import re
import sys

import yaml

from caravan.cluster.api import kubernetes_api
from caravan.cluster.profile import load_profile
from caravan.cluster.serving import Server, apply, manifests, remove
from caravan.errors import CaravanError
from caravan.operations.served import mark_served, unmark_served
from caravan.recipe import Resources
from caravan.registry import open_registry
from caravan.settings import load_settings
from caravan_pipelines.cli.models import find_model, run_of

GIB = 2**30


def serve(
    model: str,
    name: str,
    resources: Resources,
    *,
    replicas: int,
    max_replicas: int,
    api_key_secret: str,
    max_model_len: int,
    args: tuple[str, ...],
    dry_run: bool,
) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        artifact = find_model(model, registry)
    profile = load_profile(settings)
    server = Server(
        name=check_name(name or f"model-{artifact.digest[:12]}"),
        digest=artifact.digest,
        model_gib=artifact.size_bytes / GIB,
        resources=resources,
        replicas=replicas,
        max_replicas=max_replicas,
        api_key_secret=api_key_secret,
        max_model_len=max_model_len,
        args=args,
    )
    objects = manifests(server, profile)
    if dry_run:
        print(yaml.safe_dump_all(objects, sort_keys=False), end="")
        return
    apply(
        _api(
            f"; on this machine: caravan chat {model}, "
            f"or caravan model export {model} DIRECTORY && vllm serve DIRECTORY"
        ),
        objects,
    )
    with open_registry(settings) as registry:
        if not mark_served(server.name, artifact.digest, registry, run_of(model, registry)):
            print(
                f"warning: no run refers to model {artifact.digest[:12]}, so caravan gc removes it "
                "and pods that start after that find none",
                file=sys.stderr,
            )
    print(
        f"{server.name} serves {artifact.digest[:12]} at {server.base_url(profile.namespace)}\n"
        f"stop it with: caravan serve --stop {server.name}"
    )


def stop(name: str) -> None:
    settings = load_settings()
    namespace = load_profile(settings).namespace
    removed = remove(_api(), name, namespace)
    with open_registry(settings) as registry:
        marked = unmark_served(name, registry)
    if not removed and not marked:
        raise CaravanError(f"namespace {namespace} has no server called {name!r}")
    print(f"{name} is stopped")


def check_name(name: str) -> str:
    """A name that a Service may have.

    Raises:
        CaravanError: it may not.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise CaravanError(f"name {name!r}: use a-z, 0-9 and '-', beginning with a letter")
    return name


def _api(instead: str = "") -> object:
    api = kubernetes_api()
    if api is None:
        raise CaravanError(f"no cluster: KUBECONFIG names none, and this is no pod of one{instead}")
    return api
