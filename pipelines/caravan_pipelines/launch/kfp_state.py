"""What Kubeflow Pipelines and the pods say of a run, brought to the registry."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from caravan.cluster.api import kubernetes_api
from caravan.cluster.profile import ClusterProfile, load_profile
from caravan.cluster.trainjob import TrainJobs
from caravan.registry import Registry, RunRow
from caravan.registry.states import State
from caravan.settings import Settings
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch.kfp_client import in_words, open_client
from caravan_pipelines.launch.pod_ends import interruptions, record_ends
from caravan_pipelines.run_data import stored_recipe

STATES = {
    "SUCCEEDED": State.SUCCEEDED,
    "FAILED": State.FAILED,
    "CANCELED": State.CANCELLED,
    "SKIPPED": State.SUCCEEDED,
}
"""How a run of Kubeflow Pipelines may end."""
CLOCKS_DIFFER = timedelta(minutes=10)
"""How far apart the clocks of the registry and of Kubeflow Pipelines may be."""

logger = logging.getLogger(__name__)


def sync(run: RunRow, registry: Registry, settings: Settings, client: Any | None = None) -> int:
    """Bring the registry's run and its stages to what Kubeflow Pipelines and the pods say.

    Returns:
        0, or where Kubeflow Pipelines has given the run up for an interruption, the number that
        `submit_again` takes. Such a run stays open.
    """
    if run.state.finished:
        return 0
    client, profile = client or open_client(settings), load_profile(settings)
    if not run.backend_run_id:
        run = recover(run, registry, settings, client, over=run.state is State.INTERRUPTED)
        if not run.backend_run_id:
            return 0
    found = _find(run, client, settings)
    state = STATES.get(str(found.state), State.RUNNING) if found else State.FAILED
    if _complete(run, registry):  # though others of its sweep go on, or have failed
        state = State.SUCCEEDED
    if found and state is State.FAILED and (why := _interruptions(run, found, registry, profile)):
        _tell(
            run, registry, f"interrupted; `caravan watch` or `caravan resume` continues it: {why}"
        )
        return _times(found) + 1
    troubles = record_ends(run, registry, profile.namespace, state)
    if state is State.RUNNING and (hopeless := _hopeless(run, registry, profile)):
        if not others_of_sweep(run, registry):  # it would try again for hours, in vain
            with in_words(settings):
                client.terminate_run(run.backend_run_id)
            record_ends(run, registry, profile.namespace, State.CANCELLED)
        state, troubles = State.FAILED, hopeless
    if state is State.RUNNING:
        _tell(run, registry, "; ".join(troubles) or None)
        return 0
    error = None
    if state is State.FAILED and found is None:
        error = f"Kubeflow Pipelines no longer has it; `caravan resume {run.id}` submits it again"
    elif state is State.FAILED:
        said = getattr(getattr(found, "error", None), "message", None)
        error = "; ".join(troubles) or said or "Kubeflow Pipelines gives no reason"
    registry.update_run_state(run.id, state, error=error)
    if state is not State.SUCCEEDED:
        remove_jobs(run, profile)
    return 0


def recover(
    run: RunRow, registry: Registry, settings: Settings, client: Any, *, over: bool
) -> RunRow:
    """Find out what has become of a run that is being submitted, or was when whoever did so was
    stopped: the id that it has there may not have been recorded.

    If its submission is `over`, a run that did not reach Kubeflow Pipelines has failed.
    """
    there = _newest_of(run, client, settings)
    if there and there.run_id == run.backend_run_id:
        return run
    # One that has ended may be an earlier one, in whose place another is being submitted.
    if there and (over or str(there.state) not in STATES):
        registry.set_backend_run(run.id, there.run_id)
        registry.update_run_state(run.id, State.RUNNING)
    elif over and not run.state.finished:
        error = (
            "its submission was interrupted before it reached Kubeflow Pipelines; "
            f"`caravan resume {run.id}` submits it"
        )
        registry.update_run_state(run.id, State.FAILED, error=error)
    return registry.get_run(run.id)


def _newest_of(run: RunRow, client: Any, settings: Settings) -> Any | None:
    """The newest run there that executes `run`. Of a sweep, only the parameters name all runs."""
    token = ""
    while True:
        with in_words(settings):
            page = client.list_runs(
                page_token=token, page_size=20, sort_by="created_at desc",
                namespace=settings.kfp_namespace or None,
            )  # fmt: skip
        for there in page.runs or ():
            if there.created_at < run.created_at - CLOCKS_DIFFER:
                return None
            given = getattr(there.runtime_config, "parameters", None) or {}
            if run.id in (given.get("run"), given.get("first"), *given.get("others", ())):
                return there
        token = page.next_page_token
        if not token:
            return None


def _find(run: RunRow, client: Any, settings: Settings) -> Any | None:
    """What Kubeflow Pipelines says of the run; None where somebody has deleted it there."""
    from kfp_server_api import ApiException

    with in_words(settings):
        try:
            return client.get_run(run.backend_run_id)
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
    return None


def _tell(run: RunRow, registry: Registry, waiting: str | None) -> None:
    """Record what an unfinished run waits for."""
    if waiting != run.error:
        registry.update_run_state(run.id, State.RUNNING, error=waiting)


def _interruptions(run: RunRow, found: Any, registry: Registry, profile: ClusterProfile) -> str:
    """Why a run that Kubeflow Pipelines calls failed has not failed but was interrupted; empty
    where it has failed, or was interrupted too often."""
    if _times(found) >= profile.retries.interruptions:
        return ""
    said = [
        why
        for member in (run, *others_of_sweep(run, registry))
        for why in interruptions(member, registry, profile.namespace, found.created_at)
        if not _hopeless(member, registry, profile)
    ]
    return "" if _hopeless(run, registry, profile) else "; ".join(said)


def _times(found: Any) -> int:
    """How often a run has been submitted again after interruptions: its name there says so."""
    again = re.search(r"-again-(\d+)$", found.display_name)
    return int(again[1]) if again else 0


def _complete(run: RunRow, registry: Registry) -> bool:
    """Whether every stage has been done: the report does not wait for a model that no evaluation
    asks for, such as a reward model."""
    done = {s.node for s in registry.stage_runs(run.id) if s.state is State.SUCCEEDED}
    return all(node.name in done for node in stage_graph(stored_recipe(run)))


def others_of_sweep(run: RunRow, registry: Registry) -> list[RunRow]:
    """The other unfinished runs that were submitted together with this one."""
    live = registry.list_runs(limit=None, state=State.RUNNING)
    others = [o for o in live if o.backend_run_id == run.backend_run_id and o.id != run.id]
    return sorted(others, key=lambda other: other.id)


def remove_jobs(run: RunRow, profile: ClusterProfile) -> None:
    """Jobs on several nodes outlive the pod that waits for them, so that it may be restarted."""
    if all(node.resources.nodes == 1 for node in stage_graph(stored_recipe(run))):
        return
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    api = kubernetes_api()
    try:
        removed = TrainJobs(api, profile.namespace).delete_of_run(run.id) if api else []
    except (ApiException, HTTPError) as error:
        logger.warning("TrainJobs of run %s were not removed: %s", run.id, error)
    else:
        logger.info("removed TrainJobs of run %s: %s", run.id, removed)


def _hopeless(run: RunRow, registry: Registry, profile: ClusterProfile) -> list[str]:
    """Why stages that have failed too often did."""
    return [
        f"{stage.node} failed {stage.failures} times: {(stage.error or '').splitlines()[0]}"
        for stage in registry.stage_runs(run.id)
        if stage.state is State.FAILED and stage.failures > profile.retries.count
    ]
