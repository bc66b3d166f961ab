"""Synthesised prompts, decontamination and the mix."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from caravan.config import Config
from caravan.recipe.common import Fraction, Name, Resources, Sampling


class SynthesisTask(Config):
    """Persona-driven prompts of one kind, and their responses."""

    name: Name
    kind: Literal["instruction_following", "math", "grade_school_math", "algebra", "code"]
    skill: Name
    count: PositiveInt
    prompt_engine: Name
    response_engine: Name
    license: str = "Apache-2.0"
    verifier: str | None = None
    """What checks the responses, of those that Caravan brings; None checks their form alone."""
    sampling: Sampling | None = None
    """None takes that of the stage."""


class SynthesizeConfig(Config):
    """Prompts and replies that teachers write."""

    tasks: Annotated[tuple[SynthesisTask, ...], Field(min_length=1)]
    personas: str = "pocket"
    """`pocket` (written for this project), or a JSONL file with a `persona` field."""
    sampling: Sampling = Sampling(temperature=0.7)
    max_attempts: PositiveInt = 3
    """Requests per row before it is counted as failed."""
    resources: Resources = Resources()


class DecontaminateConfig(Config):
    """Tülu 3, section 3.2."""

    ngram_size: PositiveInt = 8
    max_coverage: Fraction = 0.5
    """A training row contaminates an instance when it covers more than this share of its tokens."""
    max_source_overlap: Fraction = 0.02
    """A source that overlaps more than this share of a task's instances is contaminated by it."""
    keep_sources: tuple[str, ...] = ()
    """Sources above that share that lose only the matching rows: the exception for dev tasks."""
    resources: Resources = Resources()


class MixComponent(Config):
    """How much of one source goes into the mix: a count, a weight of the source's rows, or all."""

    source: Name
    """Name of a source or of a synthesis task."""
    count: PositiveInt | None = None
    """Rows, drawn by the seed."""
    weight: PositiveFloat | None = None
    """Multiple of the source's rows; above 1 repeats rows."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.count is not None and self.weight is not None:
            raise ValueError(
                f"{self.source}: give either count or weight, not both; set the other to null"
            )
        return self


class MixConfig(Config):
    """How much of each source SFT trains on."""

    dataset_mixer_list: tuple[MixComponent, ...] = ()
    """Empty takes every row of every source. The flat list of open-instruct, `[source, 1.0, other,
    500]`, is understood too: a whole number is a count, one with a point a weight."""
    resources: Resources = Resources()

    @field_validator("dataset_mixer_list", mode="before")
    @classmethod
    def _from_flat_list(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            return value
        if len(value) % 2:
            raise ValueError("a flat list alternates source and amount: [source, 1.0, other, 500]")
        components = []
        for source, amount in zip(value[::2], value[1::2], strict=True):
            is_count = str(amount).isdecimal()
            components.append({"source": source, "count" if is_count else "weight": amount})
        return components
