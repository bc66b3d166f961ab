"""Kubernetes: does it answer, and may we do there what runs need?"""

from __future__ import annotations

from typing import Any, NamedTuple

from caravan.cluster.api import in_words, kubernetes_api
from caravan.cluster.profile import load_profile
from caravan.cluster.trainjob import GROUP, VERSION
from caravan.errors import CaravanError, MissingExtraError
from caravan.settings import Settings
from caravan_pipelines.doctor.finding import NotHereError

CONNECT_SECONDS = 10


class Permission(NamedTuple):
    group: str
    resource: str
    verb: str
    purpose: str


PERMISSIONS = (
    Permission("", "pods", "get", "say why a stage's pod ended"),
    Permission("", "pods", "list", "find the pods of a run"),
    Permission("", "pods/log", "get", "show the log of a stage's pod"),
)
"""What this project asks of the cluster's API, in the namespace of the runs."""
JOB_PERMISSIONS = (
    Permission(GROUP, "trainjobs", "list", "find jobs of a stopped run"),
    Permission(GROUP, "trainjobs", "delete", "remove jobs of a stopped run"),
)
"""Where the cluster profile says how jobs on several nodes are made."""


def api() -> Any:
    """The client of the cluster.

    Raises:
        NotHereError: there is no cluster here.
    """
    try:
        found = kubernetes_api()
    except MissingExtraError as error:
        raise NotHereError(str(error)) from error
    if found is None:
        raise NotHereError("no cluster: neither a pod's service account nor a kubeconfig")
    return found


def reachable() -> str:
    from kubernetes.client import VersionApi

    client = api()
    with in_words():
        version = VersionApi(client).get_code(_request_timeout=CONNECT_SECONDS)
    return f"{client.configuration.host}, version {version.git_version}"


def permissions(settings: Settings) -> str:
    """Every permission, by the cluster's own word (SelfSubjectAccessReview)."""
    from kubernetes import client as kubernetes

    opened, profile = api(), load_profile(settings)
    namespace = profile.namespace
    needed = PERMISSIONS + (JOB_PERMISSIONS if "trainer" in profile.model_fields_set else ())
    reviews = kubernetes.AuthorizationV1Api(opened)
    denied = []
    for wanted in needed:
        resource, _, subresource = wanted.resource.partition("/")
        review = kubernetes.V1SelfSubjectAccessReview(
            spec=kubernetes.V1SelfSubjectAccessReviewSpec(
                resource_attributes=kubernetes.V1ResourceAttributes(
                    namespace=namespace, group=wanted.group, resource=resource,
                    subresource=subresource or None, verb=wanted.verb,
                )
            )
        )  # fmt: skip
        with in_words():
            answer = reviews.create_self_subject_access_review(
                review, _request_timeout=CONNECT_SECONDS
            )
        if not answer.status.allowed:
            denied.append(wanted)
    if denied:
        named = "; ".join(f"{p.verb} {p.resource} (to {p.purpose})" for p in denied)
        raise CaravanError(
            f"in namespace {namespace} this account may not: {named}; the chart's roles allow "
            "them: bind them to the account, or run as the chart's"
        )
    return f"all {len(needed)} in namespace {namespace}"


def training_jobs(settings: Settings) -> str:
    """Whether Kubeflow Trainer is there, with the runtime of jobs on several nodes."""
    from kubernetes.client import ApiException, CustomObjectsApi

    opened, profile = api(), load_profile(settings)
    objects = CustomObjectsApi(opened)
    try:
        found = objects.list_namespaced_custom_object(
            GROUP, VERSION, profile.namespace, "trainingruntimes",
            _request_timeout=CONNECT_SECONDS,
        )  # fmt: skip
    except ApiException as error:
        if error.status == 404:
            raise NotHereError(
                "Kubeflow Trainer is not installed: stages run on one node each"
            ) from error
        if error.status == 403:
            raise NotHereError("this account may not see Kubeflow Trainer's runtimes") from error
        raise CaravanError(f"Kubeflow Trainer cannot be asked: {error.reason}") from error
    names = sorted(item["metadata"]["name"] for item in found["items"])
    if profile.trainer.runtime not in names:
        raise CaravanError(
            f"namespace {profile.namespace} has no TrainingRuntime {profile.trainer.runtime!r} "
            f"(there are: {', '.join(names) or 'none'}); install the chart's (trainer.enabled), or "
            "correct `trainer.runtime` in the cluster profile"
        )
    return f"Kubeflow Trainer, runtime {profile.trainer.runtime}"
