"""Launch, resume and cancel on whichever backend a run has, without waiting for it.

A new run goes to Kubeflow Pipelines where its address is set (`CARAVAN_KFP_URL`).
"""

from __future__ import annotations

from pathlib import Path

from caravan.recipe import Recipe
from caravan.registry import RunRow
from caravan.settings import Settings
from caravan_pipelines.launch import kubeflow, local


def launch(recipe: Recipe, settings: Settings, *, recipe_dir: Path) -> str:
    """Start a run that outlives this process; returns its id."""
    if settings.kfp_url:
        return kubeflow.launch(recipe, settings, recipe_dir=recipe_dir).run_id
    return local.launch_detached(recipe, recipe_dir=recipe_dir, settings=settings)


def resume(run: RunRow, settings: Settings) -> None:
    """Continue a run from where it stopped."""
    if run.backend == "kubeflow":
        kubeflow.resume(run, settings)
    else:
        local.resume_detached(run.id, settings)


def cancel(run: RunRow, settings: Settings) -> None:
    """Ask a run to stop; it can be resumed."""
    if run.backend == "kubeflow":
        kubeflow.cancel(run, settings)
    else:
        local.cancel(run.id, settings)
