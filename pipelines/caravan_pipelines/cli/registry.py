"""caravan registry ...: the registry's schema."""

from __future__ import annotations

import typer

registry = typer.Typer(help="Look after the registry's database.", no_args_is_help=True)


@registry.command()
def upgrade() -> None:
    """Create the tables, or bring them to this version's schema."""
    from caravan.registry import upgrade as upgrade_schema
    from caravan.settings import load_settings

    print(upgrade_schema(load_settings().resolved_registry_url))
