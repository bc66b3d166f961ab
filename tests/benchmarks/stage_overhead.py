"""Seconds that the local runner adds to a stage.

A run of the shrunken pocket recipe, no two stages of it at the same time, against the same stages'
functions called one after another in one process, which has loaded their libraries once. A step of
the run is a process of its own that fetches and publishes artifacts and tells the registry. What
the command takes before the run begins and after it has ended is told for itself.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tests.benchmarks.caravan import MINI, run
from tests.tiny import Context

from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, StageRunRow
from caravan.settings import Settings
from caravan.stages.key import stage_seed
from caravan.store import open_store
from caravan.training.models import prepare_torch
from caravan_pipelines.graph import find_node

REPETITIONS = 3
SERIAL = (
    "respond.pool=[{name: careful, engine: careful}, {name: terse, engine: terse}]",
    "evaluate.tasks=[{name: chat, task: pocket-chat, limit: 1}]",
)
"""Members of the pool and evaluations are what runs at the same time: they do next to nothing."""


def main() -> None:
    recipe = load_recipe(MINI, SERIAL)
    prepare_torch(2, recipe.seed)
    overheads, around = [], []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as home:
            settings = Settings(home=Path(home))
            options = [word for value in SERIAL for word in ("--set", value)]
            command = run(Path(home), MINI, *options).seconds
            with Registry(settings.resolved_registry_url) as registry:
                (done,) = registry.list_runs()
                stages = registry.stage_runs(done.id)
            called = sum(call_stages(recipe, stages, settings).values())
        assert done.seconds is not None
        overheads.append((done.seconds - called) / len(stages))
        around.append(command - done.seconds)
        print(f"{len(stages)} stages: {done.seconds:.1f} s, called {called:.1f} s", flush=True)
    print(f"a stage {spread(overheads)}, the command around them {spread(around)}")


def spread(seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"{middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f} over {len(seconds)})"


def call_stages(
    recipe: Recipe, stages: Sequence[StageRunRow], settings: Settings
) -> dict[str, float]:
    """Seconds of each stage's function, on the inputs that a run gave it."""
    store, found = open_store(settings.resolved_store_url, settings), {}
    for stage_run in stages:
        node = find_node(recipe, stage_run.node)
        function = import_module(f"caravan.stages.{node.stage}").run
        inputs = {name: store.fetch(digest) for name, digest in stage_run.inputs.items()}
        with tempfile.TemporaryDirectory() as directory:
            context = Context(Path(directory), seed=stage_seed(recipe.seed, node.name))
            start = time.perf_counter()
            function(node.config, inputs, context)
            found[node.name] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    main()
