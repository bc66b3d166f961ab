"""What every component does in its process: find its node in the recipe, and `execute` it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.registry import Registry
from caravan.settings import load_settings
from caravan.stages.execute import die_with_parent, execute
from caravan_pipelines.graph import find_node


class Metrics(Protocol):
    """The part of `kfp.dsl.Metrics` that is used."""

    def log_metric(self, metric: str, value: float) -> None: ...


def run_step(
    recipe: str, run: str, node: str, inputs: Mapping[str, str], metrics: Metrics
) -> dict[str, str]:
    """Execute one stage of a run.

    Args:
        recipe: the recipe as JSON.
        run: id of the run.
        node: name of the stage run.
        inputs: digest of each input artifact; an empty one is left out.
        metrics: KFP's, which get the stage's final numbers.

    Returns:
        Digest of each output artifact.
    """
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    found = find_node(Recipe.model_validate_json(recipe), node)
    settings = load_settings()
    given = {name: digest for name, digest in inputs.items() if digest}
    try:
        outputs = execute(found.name, found.stage, found.config, given, run, settings)
    except CaravanError as error:  # said in a sentence; the registry has the traceback
        raise SystemExit(f"error: {error}") from None
    with Registry(settings.resolved_registry_url) as registry:
        stage = next(s for s in registry.stage_runs(run) if s.node == node)
    for name, value in stage.metrics.items():
        metrics.log_metric(name, value)
    return outputs


def pool_artifact(recipe: str, member: str) -> str:
    """Which of the run's own models a pool member is: `base`, `sft`, or empty for an engine."""
    respond = Recipe.model_validate_json(recipe).respond
    assert respond is not None, "only recipes that respond have a pool"
    return next(m.artifact for m in respond.pool if m.name == member) or ""
