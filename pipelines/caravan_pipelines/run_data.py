"""What is read of a run: the registry has the recipe."""

from __future__ import annotations

from functools import lru_cache

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.io import recipe_from_data
from caravan.registry import Registry, RunRow
from caravan.settings import load_settings
from caravan.stages.patience import open_patiently


def open_registry() -> Registry:
    return open_patiently(load_settings())


@lru_cache(maxsize=1)
def run_of(run: str) -> RunRow:
    with open_registry() as registry:
        return registry.get_run(run)


@lru_cache(maxsize=1)
def recipe_of(run: str) -> Recipe:
    """The recipe of a run, as the registry has it."""
    return stored_recipe(run_of(run))


def stored_recipe(run: RunRow) -> Recipe:
    """The recipe that the registry keeps of a run.

    Raises:
        RecipeError: this version of caravan cannot run it.
    """
    try:
        return recipe_from_data(run.recipe)
    except RecipeError as error:
        raise RecipeError(
            f"the recipe that the registry keeps of run {run.id} cannot be run: {error}; "
            "correct the recipe's file and start a new run"
        ) from error
