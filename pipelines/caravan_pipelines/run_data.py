"""What a step reads of its run: the registry has the recipe."""

from __future__ import annotations

from functools import lru_cache

from caravan.recipe import Recipe
from caravan.registry import Registry, RunRow
from caravan.settings import load_settings
from caravan.stages.execute import patiently


def open_registry() -> Registry:
    settings = load_settings()
    return patiently(
        lambda: Registry(
            settings.resolved_registry_url, stale_after_seconds=settings.stale_after_seconds
        ),
        settings.patience_seconds,
    )


@lru_cache(maxsize=1)
def run_of(run: str) -> RunRow:
    with open_registry() as registry:
        return registry.get_run(run)


@lru_cache(maxsize=1)
def recipe_of(run: str) -> Recipe:
    """The recipe of a run, as the registry has it."""
    return Recipe.model_validate(run_of(run).recipe)
