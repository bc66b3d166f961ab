"""Launching on the stand-in of Kubeflow Pipelines, and waiting for what comes of it."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

from kfp_pipeline import End, Step
from kfp_recorder import Recorder
from kfp_stand_in import StandIn

from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan_pipelines.launch import kubeflow
from caravan_pipelines.sweep import sweep_members

MINI = Path(__file__).resolve().parents[1] / "recipes" / "pocket-mini.yaml"


def settings_for(server: StandIn, directory: Path, **more: object) -> Settings:
    given = {"home": directory, "kfp_url": server.url, "owner": "ann", "patience_seconds": 1.0}
    return Settings.model_validate(given | more)


def launched(settings: Settings, recipe: Recipe | None = None, **options: object) -> str:
    submitted = kubeflow.launch(
        recipe or load_recipe(MINI),
        settings,
        recipe_dir=MINI.parent,
        **options,  # type: ignore[arg-type]
    )
    return submitted.run_id


def launched_sweep(settings: Settings, axis: str) -> kubeflow.Submitted:
    """Of one seed."""
    (submitted,) = launched_sweeps(settings, axis)
    return submitted


def launched_sweeps(settings: Settings, *axes: str) -> list[kubeflow.Submitted]:
    """By seed."""
    members = sweep_members(partial(load_recipe, MINI), axes, [])
    tags = [member.values for member in members]
    return kubeflow.launch_together(
        [member.recipe for member in members], settings, recipe_dir=MINI.parent, tags=tags
    )


def wait_for_end(run_id: str, settings: Settings, seconds: float = 240) -> State:
    """As the watcher does."""
    deadline = time.monotonic() + seconds
    with Registry(settings.resolved_registry_url) as registry:
        while True:
            kubeflow.keep_up(registry.get_run(run_id), registry, settings)
            state = registry.get_run(run_id).state
            if state.finished or time.monotonic() > deadline:
                return state
            time.sleep(0.2)


class Waiting(Recorder):
    """Steps of one stage wait until they are stopped."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage, self.reached = stage, threading.Event()

    def run(self, step: Step, stop: threading.Event) -> End:
        if step.name == self.stage:
            self.reached.set()
            stop.wait()
            return End(143)
        return super().run(step, stop)
