"""Launch a run on Kubeflow Pipelines: compile its pipeline for the cluster, and submit it.

The registry's run exists first; its id names the run there, and what Kubeflow Pipelines calls
it is kept in the registry. To resume is to submit the pipeline again: finished stages answer at
once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caravan.cluster.api import kubernetes_api
from caravan.cluster.pod import RUN_LABEL, label_value
from caravan.cluster.profile import ClusterProfile, load_profile
from caravan.cluster.trainjob import TrainJobs
from caravan.errors import CaravanError, SettingsError, require
from caravan.recipe import Recipe
from caravan.recipe.checks import check_tasks
from caravan.recipe.io import recipe_digest
from caravan.registry import Registry, RunRow
from caravan.registry.states import State
from caravan.settings import Settings, load_settings
from caravan.store import open_store
from caravan_pipelines.budget import check_budget, project_tags
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch.files import pack_files
from caravan_pipelines.launch.local import check_writable
from caravan_pipelines.page import run_link

if TYPE_CHECKING:
    from caravan_pipelines.pods import ClusterPlacement, Placed

STATES = {
    "SUCCEEDED": State.SUCCEEDED,
    "FAILED": State.FAILED,
    "CANCELED": State.CANCELLED,
    "SKIPPED": State.SUCCEEDED,
}
"""How a run of Kubeflow Pipelines may end."""
CANCEL_SECONDS = 30.0


logger = logging.getLogger(__name__)


class KubeflowError(CaravanError):
    """Kubeflow Pipelines refuses, or does not answer."""


@dataclass(frozen=True)
class Submitted:
    run_ids: tuple[str, ...]
    """One, but for a sweep."""
    kfp_run_id: str
    link: str
    seconds: float
    """To compile and submit."""

    @property
    def run_id(self) -> str:
        return self.run_ids[0]


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
    with warnings.catch_warnings(), _in_words(settings):
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
def _in_words(settings: Settings) -> Any:
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


# --- compiling and submitting -------------------------------------------------------------------


def placement(
    recipe: Recipe, profile: ClusterProfile, settings: Settings, run_id: str, owner: str
) -> ClusterPlacement:
    """What the pods of one run, or with an empty `run_id` of a sweep, are asked for and labelled
    with."""
    from caravan_pipelines.pods import ClusterPlacement

    labels = {
        "caravan.dev/recipe": label_value(recipe.name),
        "caravan.dev/owner": label_value(owner),
    }
    annotations = {}
    if run_id:
        labels[RUN_LABEL] = label_value(run_id)
        annotations["caravan.dev/recipe-digest"] = recipe_digest(recipe)
    return ClusterPlacement(profile, labels, annotations, settings.dashboard_url)


def plan(recipe: Recipe, profile: ClusterProfile, settings: Settings) -> list[Placed]:
    """The pods that a run of `recipe` would have; nothing is submitted."""
    from caravan_pipelines.pipeline import build_pipeline

    where = placement(recipe, profile, settings, "run", settings.owner)
    build_pipeline(recipe, where)
    order = [node.name for node in stage_graph(recipe)]
    return sorted(where.placed, key=lambda task: order.index(task.nodes[0]))


def compile_pipeline(
    recipe: Recipe, where: ClusterPlacement, path: Path, about: str, *, sweep: bool = False
) -> None:
    """Write the pipeline of `recipe` as Kubeflow Pipelines takes it: YAML with two documents."""
    from kfp import compiler

    from caravan_pipelines.pipeline import build_pipeline, build_sweep

    pipeline = (build_sweep if sweep else build_pipeline)(recipe, where)
    pipeline.description = about
    pipeline.pipeline_spec.pipeline_info.description = about
    compiler.Compiler().compile(pipeline, str(path))


def launch(
    recipe: Recipe,
    settings: Settings,
    *,
    recipe_dir: Path,
    tags: tuple[str, ...] = (),
) -> Submitted:
    """Register a run of `recipe` and submit its pipeline.

    Raises:
        CaravanError: something that the run needs cannot be used; nothing is left running.
    """
    return launch_together([recipe], settings, recipe_dir=recipe_dir, tags=[tags])


def launch_together(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    recipe_dir: Path,
    tags: Sequence[tuple[str, ...]],
) -> Submitted:
    """Register a run of each recipe, with its tags, and submit them as one pipeline: several are
    a sweep.

    Raises:
        CaravanError: the recipes differ in their stages or pods, or something that they need
            cannot be used; nothing is left running.
    """
    for recipe in recipes:
        check_tasks(recipe)
    profile = load_profile(settings)
    # What cannot be placed is refused before anything is made.
    plans = [plan(recipe, profile, settings) for recipe in recipes]
    if any(other != plans[0] for other in plans):
        raise CaravanError(
            "the recipes of a sweep must have the same stages in the same pods; launch those that "
            "differ in stages or resources one by one"
        )
    client = open_client(settings)
    store = open_store(settings.resolved_store_url, settings)
    check_writable(store)
    runs: list[RunRow] = []
    with Registry(settings.resolved_registry_url) as registry, _failing(runs, registry):
        for recipe, own in zip(recipes, tags, strict=True):
            check_budget(recipe, recipe_dir, settings, registry)
            run_id = registry.create_run(
                recipe.model_dump(mode="json"),
                name=recipe.name,
                seed=recipe.seed,
                recipe_digest=recipe_digest(recipe),
                owner=settings.owner,
                recipe_dir=pack_files(recipe, recipe_dir.resolve(), store),
                tags=project_tags(own, settings),
                backend="kubeflow",
            )
            runs.append(registry.get_run(run_id))
        return _submit(runs, client, profile, settings, registry)


@contextlib.contextmanager
def _failing(runs: Sequence[RunRow], registry: Registry) -> Iterator[None]:
    """Let what is not submitted, for an error, be known as failed."""
    try:
        yield
    except CaravanError as error:
        for run in runs:
            registry.update_run_state(run.id, State.FAILED, error=str(error))
        raise


def resume(run: RunRow, settings: Settings) -> Submitted:
    """Submit the pipeline of a stopped run again.

    Raises:
        CaravanError: it still runs, or Kubeflow Pipelines refuses.
    """
    client, profile = open_client(settings), load_profile(settings)
    with Registry(settings.resolved_registry_url) as registry:
        sync(run, registry, settings, client)
        if not (run := registry.get_run(run.id)).state.finished:
            raise CaravanError(
                f"run {run.id} is {run.state} on Kubeflow Pipelines: follow it with "
                f"`caravan show {run.id}`, stop it with `caravan cancel {run.id}`"
            )
        with _failing([run], registry):
            return _submit([run], client, profile, settings, registry)


def _submit(
    runs: Sequence[RunRow],
    client: Any,
    profile: ClusterProfile,
    settings: Settings,
    registry: Registry,
) -> Submitted:
    first, others = runs[0], [run.id for run in runs[1:]]
    recipe = Recipe.model_validate(first.recipe)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, _in_words(settings):
        path = Path(directory, "pipeline.yaml")
        label = "" if others else first.id
        where = placement(recipe, profile, settings, label, first.owner)
        about = "; ".join(describe(run, settings) for run in runs)
        compile_pipeline(recipe, where, path, about, sweep=bool(others))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints links
            experiment = client.create_experiment(
                name=recipe.name, namespace=settings.kfp_namespace or None
            )
            submitted = client.run_pipeline(
                experiment_id=experiment.experiment_id,
                job_name=first.id,
                pipeline_package_path=str(path),
                params={"first": first.id, "others": others} if others else {"run": first.id},
                enable_caching=False,
                service_account=profile.service_account or None,
            )
    for run in runs:
        registry.forgive_failures(run.id)
        registry.set_backend_run(run.id, submitted.run_id)
        registry.update_run_state(run.id, State.RUNNING)
    return Submitted(
        tuple(run.id for run in runs),
        submitted.run_id,
        run_page(submitted.run_id, settings),
        time.perf_counter() - began,
    )


def describe(run: RunRow, settings: Settings) -> str:
    """What Kubeflow Pipelines' page says of the run."""
    parts = [f"Caravan run {run.id}", f"recipe {run.name} ({run.recipe_digest})"]
    parts.append(f"owner {run.owner}")
    if run.tags:
        parts.append(f"tags {', '.join(run.tags)}")
    if settings.dashboard_url:
        parts.append(run_link(settings.dashboard_url, run.id))
    return "; ".join(parts)


def run_page(kfp_run_id: str, settings: Settings) -> str:
    """The page of a run in Kubeflow Pipelines."""
    return f"{settings.kfp_url.rstrip('/')}/#/runs/details/{kfp_run_id}"


# --- afterwards ---------------------------------------------------------------------------------


def cancel(run: RunRow, settings: Settings) -> None:
    """Stop a run, and with it the sweep it is in; `resume` continues it.

    Raises:
        KubeflowError: Kubeflow Pipelines refuses, or does not answer.
    """
    if not run.backend_run_id:
        raise KubeflowError(f"run {run.id} never reached Kubeflow Pipelines: nothing to stop")
    client = open_client(settings)
    with _in_words(settings):
        client.terminate_run(run.backend_run_id)
    deadline = time.monotonic() + CANCEL_SECONDS
    with Registry(settings.resolved_registry_url) as registry:
        while time.monotonic() < deadline:
            sync(run, registry, settings, client)
            if registry.get_run(run.id).state.finished:
                return
            time.sleep(1)


def sync(run: RunRow, registry: Registry, settings: Settings, client: Any | None = None) -> None:
    """Bring the registry's run and its stages to what Kubeflow Pipelines and the pods say."""
    from caravan_pipelines.launch.pod_ends import record_ends

    if run.state.finished or not run.backend_run_id:
        return
    client, profile = client or open_client(settings), load_profile(settings)
    with _in_words(settings):
        found = client.get_run(run.backend_run_id)
    state = STATES.get(str(found.state), State.RUNNING)
    if _complete(run, registry):  # though others of its sweep go on, or have failed
        state = State.SUCCEEDED
    troubles = record_ends(run, registry, profile.namespace, state)
    if hopeless := _hopeless(run, registry, profile):
        if state is State.RUNNING and _in_sweep(run, registry):
            state, troubles = State.FAILED, hopeless
        elif state is State.RUNNING:  # else it would try again for hours, in vain
            with _in_words(settings):
                client.terminate_run(run.backend_run_id)
        elif state is State.CANCELLED:  # as we have asked
            state, troubles = State.FAILED, hopeless
    if state is State.RUNNING:
        waiting = "; ".join(troubles) or None
        if waiting != run.error:
            registry.update_run_state(run.id, State.RUNNING, error=waiting)
        return
    error = None
    if state is State.FAILED:
        said = getattr(found.error, "message", None) if found.error else None
        error = "; ".join(troubles) or said or "Kubeflow Pipelines gives no reason"
    registry.update_run_state(run.id, state, error=error)
    if state is not State.SUCCEEDED:
        _remove_jobs(run, profile)


def _complete(run: RunRow, registry: Registry) -> bool:
    """Whether the last stage has been done, for which all others must have been."""
    last = stage_graph(Recipe.model_validate(run.recipe))[-1].name
    return any(s.node == last and s.state is State.SUCCEEDED for s in registry.stage_runs(run.id))


def _in_sweep(run: RunRow, registry: Registry) -> bool:
    others = registry.list_runs(limit=None, state=State.RUNNING)
    return any(o.backend_run_id == run.backend_run_id and o.id != run.id for o in others)


def _remove_jobs(run: RunRow, profile: ClusterProfile) -> None:
    """Jobs on several nodes outlive the pod that waits for them, so that it may be restarted."""
    if all(node.resources.nodes == 1 for node in stage_graph(Recipe.model_validate(run.recipe))):
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


def sync_all(settings: Settings | None = None) -> int:
    """Bring every unfinished run on Kubeflow Pipelines up to date; returns how many there are."""
    settings = settings or load_settings()
    with Registry(settings.resolved_registry_url) as registry:
        live = [
            run
            for state in (State.PENDING, State.RUNNING)
            for run in registry.list_runs(limit=None, state=state)
            if run.backend == "kubeflow" and run.backend_run_id
        ]
        if live:
            client = open_client(settings)
            for run in live:
                sync(run, registry, settings, client)
    return len(live)
