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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caravan.cluster.pod import RUN_LABEL, label_value
from caravan.cluster.profile import ClusterProfile, load_profile
from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.recipe.checks import check_tasks
from caravan.recipe.io import recipe_digest
from caravan.registry import LIVE, RECIPE_FILES, Registry, RunRow, State, open_registry
from caravan.settings import Settings, load_settings
from caravan.store import open_store
from caravan_pipelines.budget import check_budget, project_tags
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch.files import pack_files
from caravan_pipelines.launch.kfp_client import KubeflowError, in_words, open_client
from caravan_pipelines.launch.kfp_state import (
    others_of_sweep,
    recover,
    remove_jobs,
    sync,
)
from caravan_pipelines.launch.local import check_writable
from caravan_pipelines.launch.pod_ends import record_ends
from caravan_pipelines.page import run_link
from caravan_pipelines.run_data import stored_recipe

if TYPE_CHECKING:
    from caravan_pipelines.pods import ClusterPlacement, Placed

CANCEL_SECONDS = 30.0
CANCEL_POLL_SECONDS = 0.5


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    run_ids: tuple[str, ...]
    """One, but for those of a sweep that have one seed."""
    kfp_run_id: str
    link: str
    seconds: float
    """To compile and submit."""

    @property
    def run_id(self) -> str:
        return self.run_ids[0]


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
    (submitted,) = launch_together([recipe], settings, recipe_dir=recipe_dir, tags=[tags])
    return submitted


def launch_together(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    recipe_dir: Path,
    tags: Sequence[tuple[str, ...]],
) -> list[Submitted]:
    """Register a run of each recipe, with its tags, and submit those of one seed as one pipeline:
    several are a sweep. Runs of different seeds have no work in common.

    Raises:
        CaravanError: the recipes differ in their stages or pods, or something that they need
            cannot be used; nothing is left running.
    """
    for recipe in recipes:
        check_tasks(recipe, recipe_dir)
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
    """That are not submitted yet."""
    submitted: list[Submitted] = []
    with open_registry(settings) as registry, _failing(runs, registry, settings, client):
        for recipe, own in zip(recipes, tags, strict=True):
            check_budget(recipe, recipe_dir, settings, registry)
            files = pack_files(recipe, recipe_dir.resolve(), store, registry)
            run_id = registry.create_run(
                recipe.model_dump(mode="json"),
                name=recipe.name,
                seed=recipe.seed,
                recipe_digest=recipe_digest(recipe),
                owner=settings.owner,
                recipe_dir=files,
                tags=project_tags(own, settings),
                backend="kubeflow",
            )
            runs.append(registry.get_run(run_id))
            # A collection may have taken the files before a run referred to them.
            if files and not store.exists(files.removeprefix(RECIPE_FILES)):
                pack_files(recipe, recipe_dir.resolve(), store, registry)
        while runs:
            together = [run for run in runs if run.seed == runs[0].seed]
            submitted.append(_submit(together, client, profile, settings, registry))
            runs[:] = [run for run in runs if run.seed != runs[0].seed]
    return submitted


@contextlib.contextmanager
def _failing(
    runs: Sequence[RunRow], registry: Registry, settings: Settings, client: Any
) -> Iterator[None]:
    """Let what is not submitted, for an error or an interruption, be known as failed."""
    try:
        yield
    except CaravanError as error:
        for run in runs:
            registry.update_run_state(run.id, State.FAILED, error=str(error))
        raise
    except BaseException:  # Ctrl-C, perhaps while the answer was on its way
        with contextlib.suppress(CaravanError):  # what is still open then is recovered later
            for run in runs:
                now = recover(registry.get_run(run.id), registry, settings, client, over=True)
                if not now.state.finished:
                    logger.warning(
                        "run %s has reached Kubeflow Pipelines and goes on there: stop it with "
                        "`caravan cancel %s`", run.id, run.id,
                    )  # fmt: skip
        raise


def resume(run: RunRow, settings: Settings) -> Submitted:
    """Submit the pipeline of a stopped run again.

    Raises:
        CaravanError: it still runs, or Kubeflow Pipelines refuses.
    """
    client, profile = open_client(settings), load_profile(settings)
    with open_registry(settings) as registry:
        given_up = sync(run, registry, settings, client)
        run = registry.get_run(run.id)
        free = given_up and registry.take_backend_run(run.id, run.backend_run_id)
        if run.state in LIVE and not free:
            raise CaravanError(
                f"run {run.id} is {run.state} on Kubeflow Pipelines: follow it with "
                f"`caravan show {run.id}`, stop it with `caravan cancel {run.id}`"
            )
        registry.forgive_failures(run.id)
        with _failing([run], registry, settings, client):
            return _submit([run], client, profile, settings, registry)


def _submit(
    runs: Sequence[RunRow],
    client: Any,
    profile: ClusterProfile,
    settings: Settings,
    registry: Registry,
    *,
    again: int = 0,
) -> Submitted:
    """`again` counts the times that runs were submitted again after interruptions."""
    first, others = runs[0], [run.id for run in runs[1:]]
    recipe = stored_recipe(first)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, in_words(settings):
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
                job_name=f"{first.id}-again-{again}" if again else first.id,
                pipeline_package_path=str(path),
                params={"first": first.id, "others": others} if others else {"run": first.id},
                enable_caching=False,
                service_account=profile.service_account or None,
            )
    for run in runs:
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
        KubeflowError: it is being submitted, or Kubeflow Pipelines refuses or does not answer.
    """
    client, stopped = open_client(settings), ""
    deadline = time.monotonic() + CANCEL_SECONDS
    with open_registry(settings) as registry:
        while time.monotonic() < deadline:
            if sync(run, registry, settings, client):
                _end_given_up(run, registry, load_profile(settings))
            if (run := registry.get_run(run.id)).state.finished:
                return
            if run.backend_run_id not in ("", stopped):  # also one submitted again meanwhile
                stopped = run.backend_run_id
                with in_words(settings):
                    client.terminate_run(stopped)
            time.sleep(CANCEL_POLL_SECONDS)
    if not run.backend_run_id:
        raise KubeflowError(
            f"run {run.id} is being submitted to Kubeflow Pipelines; if whoever did so was killed, "
            f"it can be cancelled {settings.stale_after_seconds:.0f} s after that"
        )


def _end_given_up(run: RunRow, registry: Registry, profile: ClusterProfile) -> None:
    """Cancel a run that Kubeflow Pipelines does not execute any more, unless somebody else has
    just taken it to submit it again."""
    if registry.take_backend_run(run.id, run.backend_run_id):
        record_ends(run, registry, profile.namespace, State.CANCELLED)
        registry.update_run_state(run.id, State.CANCELLED)
        registry.set_backend_run(run.id, run.backend_run_id)
        remove_jobs(run, profile)


# --- interruptions ------------------------------------------------------------------------------
# Kubeflow Pipelines tries a step again whose pod has failed, but not one whose pod is gone: Argo
# Workflows calls that an error, and its default is to retry failures only. The whole run fails.


def keep_up(run: RunRow, registry: Registry, settings: Settings, client: Any | None = None) -> None:
    """`sync`, and submit a run again that Kubeflow Pipelines has given up for an interruption."""
    client = client or open_client(settings)
    if again := sync(run, registry, settings, client):
        submit_again(run, again, registry, settings, client)


def submit_again(
    run: RunRow, again: int, registry: Registry, settings: Settings, client: Any
) -> None:
    """Submit the pipeline of an interrupted run, or what is left of the sweep it is in, unless
    another process does so."""
    members = [run, *others_of_sweep(run, registry)]
    taken = [r for r in members if registry.take_backend_run(r.id, run.backend_run_id)]
    if not taken:
        return
    try:
        _submit(taken, client, load_profile(settings), settings, registry, again=again)
    except CaravanError:
        for member in taken:  # for the next attempt
            registry.set_backend_run(member.id, run.backend_run_id)
        raise
    names = ", ".join(member.id for member in taken)
    logger.warning("submitted again after an interruption: %s (%d)", names, again)


def sync_all(settings: Settings | None = None) -> list[str]:
    """Bring every unfinished run on Kubeflow Pipelines up to date, and submit those again that
    were interrupted; returns what went wrong with single runs."""
    settings, errors = settings or load_settings(), []
    with open_registry(settings) as registry:
        live = [
            run.id
            for state in (*LIVE, State.INTERRUPTED)
            for run in registry.list_runs(limit=None, state=state)
            if run.backend == "kubeflow"
        ]
        client = open_client(settings) if live else None
        for run_id in live:
            try:  # as it is now: it may have been submitted again with another
                keep_up(registry.get_run(run_id), registry, settings, client)
            except CaravanError as error:
                errors.append(f"run {run_id}: {error}")
    return errors
