"""What several verbs share."""

from __future__ import annotations

from pathlib import Path

from caravan.errors import RecipeError


def shipped_recipes() -> Path:
    """The directory of the recipes that come with Caravan."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(name: Path) -> Path:
    """The file called `name`, or the shipped recipe of that name.

    Raises:
        RecipeError: there is neither.
    """
    if name.is_file():
        return name
    shipped = shipped_recipes() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.stem for path in shipped_recipes().glob("*.yaml")))
    raise RecipeError(f"{name}: no such file, nor a shipped recipe of that name ({known})")
