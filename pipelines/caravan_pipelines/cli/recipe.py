"""caravan recipe ...: look at recipes without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipe = typer.Typer(help="Validate, show and compare recipes.", no_args_is_help=True)

FileOrRun = Annotated[
    Path, typer.Argument(help="Recipe file, the name of a shipped one, or a run (its recipe).")
]


@recipe.command()
def validate(file: FileOrRun) -> None:
    """Check a recipe; exit code 2 says what is wrong."""
    from caravan.recipe.io import recipe_digest
    from caravan_pipelines.cli.common import read_recipe
    from caravan_pipelines.graph import stage_graph

    loaded, _ = read_recipe(file)
    stages = len(stage_graph(loaded))
    print(f"{file}: valid, {stages} stages, digest {recipe_digest(loaded)[:12]}")


@recipe.command()
def show(file: FileOrRun) -> None:
    """Print a recipe with every default filled in."""
    import yaml

    from caravan_pipelines.cli.common import read_recipe

    loaded, _ = read_recipe(file)
    print(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


@recipe.command()
def diff(old: FileOrRun, new: FileOrRun) -> None:
    """Print the fields in which two recipes differ: caravan recipe diff latest mine.yaml"""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from caravan.recipe.io import diff as recipe_diff
    from caravan_pipelines.cli.common import read_recipe
    from caravan_pipelines.cli.tables import columns, print_table

    differences = recipe_diff(read_recipe(old)[0], read_recipe(new)[0])
    if not differences:
        print("no difference")
        return
    table = Table(*columns("field", str(old), str(new)))
    for difference in differences:
        table.add_row(*(Text(str(value)) for value in difference))
    print_table(Console(), table)


@recipe.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from caravan.recipe.io import schema_text

    print(schema_text(), end="")
