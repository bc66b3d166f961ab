"""caravan data ...: look at rows as training sees them, and at what people prefer."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(
    help="Look at rows as training sees them, and at what people prefer.", no_args_is_help=True
)


class Stage(StrEnum):
    sft = "sft"
    dpo = "dpo"


@data.command()
def inspect(
    rows: Annotated[
        str,
        typer.Argument(
            help="File of a source (JSONL, JSON, CSV, Parquet), or an artifact: a digest or "
            "RUN:STAGE/OUTPUT."
        ),
    ],
    row: Annotated[
        str | None,
        typer.Option(
            help="Id of the row, or its number from 0 where rows have none; the first if not given."
        ),
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Read conversations (sft) or pairs (dpo).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Directory or artifact of the model whose tokenizer is used."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Cut rows after so many tokens, as training does.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="One token a line.")] = False,
) -> None:
    """Show a row token by token; the tokens that are trained on are green."""
    from caravan_pipelines.cli import inspection as command

    command.inspect(
        rows, row, stage.value if stage else None, model, max_length=max_length, table=table
    )


@data.command()
def ratings(
    pairs: Annotated[
        str,
        typer.Argument(help="A run, or an artifact of pairs: a digest or RUN:pair/pairs."),
    ] = "latest",
    to: Annotated[
        Path | None,
        typer.Option(help="Write the pairs as most people want them, as JSONL for pair.sources."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how far people agree with the judge: caravan data ratings latest --to pairs.jsonl"""
    from caravan_pipelines.cli import ratings as command

    command.ratings(pairs, to, as_json=json)
