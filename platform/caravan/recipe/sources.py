"""Where prompts come from, and how they are curated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from caravan.config import Config
from caravan.recipe.common import Fraction, Name, Resources


class FileSource(Config):
    """JSONL, JSON, CSV or Parquet files, gzipped or not, in any format of docs/data-formats.md."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths or globs, relative to the recipe's directory; `~` is your home directory."""


class HubSource(Config):
    """A dataset on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    dataset_name: str
    """`owner/name`."""
    config_name: str | None = None
    """Where the dataset has several configurations: which."""
    split: str = "train"
    """Which part of it; a slice such as `train[:1000]` too."""
    revision: str | None = None
    """Branch, tag or commit; None takes the newest."""
    where: dict[str, tuple[str, ...]] = {}  # noqa: RUF012  # pydantic copies it
    """Takes only the rows whose column (the key) has one of the values."""


class GeneratedSource(Config):
    """Rows made by code of this project (the pocket recipe)."""

    kind: Literal["generated"] = "generated"
    generator: Name
    """A generator of the pocket recipe."""
    count: PositiveInt
    """Rows to make."""


SourceOrigin = Annotated[FileSource | HubSource | GeneratedSource, Field(discriminator="kind")]


class Source(Config):
    """One source of prompts, with where it came from and what may be done with it."""

    name: Name
    """Short name by which the mix, the pages and the ids of rows know it."""
    origin: SourceOrigin
    """Where its rows are: `kind: files`, `hub` or `generated`."""
    license: str
    """SPDX identifier, or `unknown`, which `curate.allowed_licenses` must then allow."""
    provenance: str = ""
    """Who wrote it: a paper, a person, a program."""
    skill: Name
    """What it teaches, such as `math` or `chat`, in a word of yours; tables are by skill."""
    rows: PositiveInt | None = None
    """Rows that the source is known to hold; a difference is an error."""
    reported_rows: PositiveInt | None = None
    """Prompts that the provenance reports; for plans and tables, not enforced."""
    verifier: str | None = None
    """Of rows that have a ground truth and name no verifier: one that Caravan brings, or one of
    `verifiers`."""


class CurateConfig(Config):
    """Which sources the prompts are from, and what is dropped of them."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Files and datasets; of duplicates the row of the earlier source stays."""
    allowed_licenses: tuple[str, ...] = ()
    """Empty allows every licence."""
    drop_exact_duplicates: bool = True
    """Drop a conversation that an earlier row has, but for case and spaces."""
    near_duplicate_threshold: Fraction | None = 0.9
    """Jaccard similarity of word 5-grams (MinHash) at which a row whose prompt and whose reply are
    both that close to an earlier row's is a near duplicate."""
    forbidden_phrases: tuple[str, ...] = ()
    """Rows whose assistant turns contain one are dropped: other models' and developers' names."""
    resources: Resources = Resources()
