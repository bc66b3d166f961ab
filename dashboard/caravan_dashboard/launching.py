"""The one place where the dashboard starts and stops runs."""

from __future__ import annotations

from pathlib import Path

from caravan.recipe import Recipe


def launch(recipe: Recipe, recipe_dir: Path) -> str:
    """Start a run in a process of its own; gives its id. Relative paths are meant from there."""
    from caravan_pipelines.launch.local import launch_detached

    return launch_detached(recipe, recipe_dir=recipe_dir)


def resume(run_id: str) -> None:
    """Continue a run in a process of its own; finished stages are not repeated."""
    from caravan_pipelines.launch.local import resume_detached

    resume_detached(run_id)


def cancel(run_id: str) -> None:
    """Ask a run to stop; it can be resumed."""
    from caravan_pipelines.launch.local import cancel as stop

    stop(run_id)
