"""Seconds that the local runner adds to a stage.

A run of the shrunken pocket recipe, no two stages of it at the same time, against the same stages'
functions called one after another in one process, which has loaded their libraries once. A step of
the run is a process of its own that fetches and publishes artifacts and tells the registry.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.benchmarks.caravan import MINI, run
from tests.tiny import Context

from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.registry import Registry
from caravan.settings import Settings
from caravan.stages.execute import stage_seed
from caravan.store import open_store
from caravan.training.models import prepare_torch
from caravan_pipelines.graph import find_node

REPETITIONS = 5
SERIAL = (
    "respond.pool=[{name: careful, engine: careful}, {name: terse, engine: terse}]",
    "evaluate.tasks=[{name: chat, task: pocket-chat, limit: 1}]",
)
"""Members of the pool and evaluations are what runs at the same time: they do next to nothing."""


def main() -> None:
    recipe = load_recipe(MINI, SERIAL)
    prepare_torch(2, recipe.seed)
    overheads, stages = [], 0
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as home:
            options = [word for value in SERIAL for word in ("--set", value)]
            measured = run(Path(home), MINI, *options)
            called = call_stages(recipe, Settings(home=Path(home)))
        stages = len(called)
        overheads.append((measured.seconds - sum(called.values())) / stages)
        print(
            f"{stages} stages: {measured.seconds:.1f} s, called {sum(called.values()):.1f} s",
            flush=True,
        )
    print(
        f"{statistics.median(overheads):.2f} s a stage ({min(overheads):.2f} to "
        f"{max(overheads):.2f} over {REPETITIONS}), the command's start included"
    )


def call_stages(recipe: Recipe, settings: Settings) -> dict[str, float]:
    """Seconds of each stage's function, on the inputs that the latest run gave it."""
    store = open_store(settings.resolved_store_url, settings)
    with Registry(settings.resolved_registry_url) as registry:
        (run_row,) = registry.list_runs()
        done = registry.stage_runs(run_row.id)
    found = {}
    for stage_run in done:
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
