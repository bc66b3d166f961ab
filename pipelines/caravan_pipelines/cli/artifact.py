"""caravan artifact ...: what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

artifact = typer.Typer(help="Look at artifacts and copy them out.", no_args_is_help=True)

Reference = Annotated[
    str, typer.Argument(help="Digest, the beginning of one, or RUN:STAGE/OUTPUT.")
]


@artifact.command()
def show(
    reference: Reference,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what an artifact holds, what it was made from and what was made from it."""
    from caravan_pipelines.cli import artifacts as command

    command.show(reference, as_json=json)


@artifact.command()
def get(
    reference: Reference,
    to: Annotated[Path, typer.Option(help="Directory to copy into; must not exist.")],
) -> None:
    """Copy an artifact out of the store, verified."""
    from caravan_pipelines.cli import artifacts as command

    command.get(reference, to)
