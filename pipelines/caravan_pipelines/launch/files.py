"""The files that a recipe names, packed into the store, where the pods of its run find them."""

from __future__ import annotations

import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.registry import RECIPE_FILES, Registry
from caravan.settings import Settings
from caravan.store import Store, open_store
from caravan_pipelines.graph import stage_graph


def pack_files(recipe: Recipe, recipe_dir: Path, store: Store, registry: Registry) -> str:
    """Publish the files that the recipe names; returns the run's `recipe_dir`, empty for none.

    Raises:
        RecipeError: a file does not exist, or lies outside the recipe's directory and has no name
            in a pod.
    """
    files = recipe_files(recipe, recipe_dir)
    if not files:
        return ""
    with tempfile.TemporaryDirectory() as directory:
        for file in files:
            if not file.is_file():
                raise RecipeError(f"{file}: there is no such file, and the recipe names it")
            if not file.is_relative_to(recipe_dir):
                raise RecipeError(
                    f"{file} is outside the recipe's directory {recipe_dir}: pods would not find "
                    "it; put it beside the recipe and name it by a relative path"
                )
            target = Path(directory) / file.relative_to(recipe_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        artifact = store.put(Path(directory), "report")
        registry.add_artifact(artifact, store.uri(artifact.digest))
        return RECIPE_FILES + artifact.digest


def recipe_files(recipe: Recipe, recipe_dir: Path) -> list[Path]:
    """The files that the recipe names, resolved, each once."""
    found: dict[Path, None] = {}
    for node in stage_graph(recipe):
        module = import_module(f"caravan.stages.{node.stage}")
        if named := getattr(module, "external_files", None):
            found |= dict.fromkeys(path.resolve() for path in named(node.config, recipe_dir))
    return list(found)


def unpack_files(recipe_dir: str, settings: Settings) -> Path:
    """The directory that relative paths of a run's recipe are meant from, on this machine."""
    if recipe_dir.startswith(RECIPE_FILES):
        store = open_store(settings.resolved_store_url, settings)
        return store.fetch(recipe_dir.removeprefix(RECIPE_FILES))
    return Path(recipe_dir or ".")
