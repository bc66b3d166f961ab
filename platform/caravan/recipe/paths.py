"""Paths that a recipe names."""

from __future__ import annotations

from pathlib import Path


def model_directory(model_name_or_path: str, recipe_dir: Path) -> Path:
    """Where a model lies, unless the name is that of one on a hub: relative to the recipe's
    directory, `~` being the home directory."""
    return recipe_dir / Path(model_name_or_path).expanduser()
