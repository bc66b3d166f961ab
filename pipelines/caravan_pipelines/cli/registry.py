"""caravan registry ...: the registry's schema, and its backups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

registry = typer.Typer(help="Look after the registry's database.", no_args_is_help=True)


@registry.command()
def upgrade() -> None:
    """Create the tables, or bring them to this version's schema."""
    from caravan.registry import upgrade as upgrade_schema
    from caravan.settings import load_settings

    print(upgrade_schema(load_settings().resolved_registry_url))


@registry.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
) -> None:
    """Write the registry into one file, while it is being used."""
    from caravan.operations.backup import backup as write
    from caravan.settings import load_settings

    write(load_settings().resolved_registry_url, file)
    print(file)


@registry.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `caravan registry backup` wrote.")],
) -> None:
    """Fill an empty registry from a backup."""
    from caravan.operations.backup import restore as read
    from caravan.settings import load_settings

    settings = load_settings()
    read(settings.resolved_registry_url, file)
    print("restored; check it with: caravan doctor, caravan runs")
