"""Paths that a recipe names."""

from __future__ import annotations

import os
from pathlib import Path


def is_hub_name(model_name_or_path: str) -> bool:
    """Whether a model that is no directory may be one of a hub: `owner/name`."""
    return not model_name_or_path.startswith((".", "/", "~")) and (
        model_name_or_path.count("/") == 1
    )


def model_directory(model_name_or_path: str, recipe_dir: Path) -> Path:
    """Where a model lies, unless the name is that of one on a hub: relative to the recipe's
    directory, `~` being the home directory."""
    return recipe_dir / os.path.expanduser(model_name_or_path)  # Path's own fails for ~nobody
