"""The other nodes of a training stage: they train along, and the first one tells and publishes.

`execute` does a stage's work and keeps its books on the first node; here the same function runs
on the same inputs without books.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel

from caravan.interruption import CONTINUE_EXIT_CODE, StageStopped, StopSignals
from caravan.registry import Registry
from caravan.settings import Settings
from caravan.stages.context import ArtifactKind
from caravan.stages.key import stage_key, stage_seed
from caravan.stages.patience import patiently
from caravan.store import open_store


class SilentContext:
    """`StageContext` of a node whose outputs and metrics nobody reads."""

    def __init__(self, directory: Path, *, seed: int, recipe_dir: Path) -> None:
        self.seed, self.recipe_dir = seed, recipe_dir
        self.workdir = directory / "scratch"
        self.workdir.mkdir(parents=True, exist_ok=True)

    def output(self, name: str, kind: ArtifactKind) -> Path:
        path = self.workdir.parent / "outputs" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass


def follow(
    node: str,
    stage: str,
    config: BaseModel,
    inputs: Mapping[str, str],
    run_id: str,
    settings: Settings,
    *,
    recipe_dir: Path,
    node_rank: int,
) -> None:
    """Run one stage along with its first node; arguments as of `execute`.

    Raises:
        SystemExit: with `CONTINUE_EXIT_CODE`, when this process or the others were stopped.
    """
    module = import_module(f"caravan.stages.{stage}")
    with patiently(
        lambda: Registry(settings.resolved_registry_url), settings.patience_seconds
    ) as registry:
        seed = stage_seed(registry.get_run(run_id).seed, node)
    key = stage_key(module, config, inputs, seed, recipe_dir=recipe_dir)
    store = open_store(settings.resolved_store_url, settings)

    def fetch(digest: str) -> Path:
        return patiently(lambda: store.fetch(digest), settings.patience_seconds)

    fetched = {name: fetch(digest) for name, digest in inputs.items()}
    directory = settings.work_dir / key / f"node-{node_rank}"
    context = SilentContext(directory, seed=seed, recipe_dir=recipe_dir)
    try:
        with StopSignals():
            module.run(config, fetched, context)
    except StageStopped as stopped:
        raise SystemExit(CONTINUE_EXIT_CODE) from stopped
