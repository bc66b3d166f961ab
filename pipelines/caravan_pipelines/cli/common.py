"""What several verbs share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from caravan.errors import RecipeError, RegistryError
from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe, recipe_from_data


def shipped_recipes() -> Path:
    """The directory of the recipes that come with Caravan."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def read_recipe(name: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """The recipe in the file called `name`, the shipped one of that name, or that of a run; and the
    directory that its relative paths are meant from.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    if (found := _file(name)) is not None:
        return load_recipe(found, overrides), found.parent
    from caravan.registry import open_registry
    from caravan.settings import load_settings
    from caravan_pipelines.launch.files import unpack_files

    settings = load_settings()
    try:
        with open_registry(settings) as registry:
            run = registry.get_run(str(name))
    except RegistryError as error:
        raise RecipeError(
            f"{name}: no such file, nor a shipped recipe of that name ({_shipped()}), nor a run: "
            f"{error}"
        ) from error
    return recipe_from_data(run.recipe, overrides), unpack_files(run.recipe_dir, settings)


def _file(name: Path) -> Path | None:
    shipped = shipped_recipes() / f"{name}.yaml"
    return next((path for path in (name, shipped) if path.is_file()), None)


def _shipped() -> str:
    return ", ".join(sorted(path.stem for path in shipped_recipes().glob("*.yaml")))


def print_json(data: object) -> None:
    """Print data as JSON, which has no NaN and no infinity: null stands for them."""
    print(json.dumps(_finite(data), indent=2))


def _finite(data: object) -> object:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
