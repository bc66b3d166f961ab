"""caravan model ...: merge models, tell where they come from, and hand them out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

model = typer.Typer(help="Merge models, show their cards, export them.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="Digest of a model, or RUN:STAGE/model.")]


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@model.command()
def export(
    reference: Reference,
    directory: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    dtype: Annotated[
        Precision | None, typer.Option(help="Precision of the weights; as trained by default.")
    ] = None,
) -> None:
    """Write a model as a Hugging Face directory with its card, for transformers and vLLM."""
    from caravan_pipelines.cli import models as command

    command.export(reference, directory, None if dtype is None else dtype.value)


@model.command()
def card(reference: Reference) -> None:
    """Print the model card: data, licences, hyperparameters and scores, from the registry."""
    from caravan_pipelines.cli import models as command

    command.card(reference)


@model.command()
def merge(
    ingredients: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[:WEIGHT]...", help="Models or directories; equal weights."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write a directory instead of an artifact of the run.")
    ] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Do not divide the weights by their sum.")
    ] = False,
) -> None:
    """Average models of one architecture: caravan model merge latest:sft/model:1 latest:dpo/model:3

    The merged model becomes an artifact of the run that made the first one.
    """
    from caravan_pipelines.cli import models as command

    command.merge(ingredients, out, as_given=as_given)
