"""Preference data: prompts, responses, ratings and pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from caravan.config import Config
from caravan.recipe.common import Name, Resources, Sampling
from caravan.recipe.sources import FileSource, HubSource


class PromptComponent(Config):
    """Prompts of one origin. No prompt is drawn twice; earlier components choose first."""

    name: Name
    sources: tuple[Name, ...] = ()
    """Sources to draw from; empty draws from all."""
    drawn_from: Literal["used_in_sft", "unused_in_sft", "any"] = "any"
    """Whether the SFT mix may or must hold the prompt."""
    count: PositiveInt


class SamplePromptsConfig(Config):
    """Which prompts get preference pairs: a plain split, or one component after another."""

    used_in_sft: NonNegativeInt = 0
    """Prompts drawn from those the SFT mix used."""
    unused_in_sft: NonNegativeInt = 0
    """Prompts drawn from those it did not."""
    components: tuple[PromptComponent, ...] = ()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        split = self.used_in_sft + self.unused_in_sft
        if bool(split) == bool(self.components):
            raise ValueError("give either used_in_sft and unused_in_sft, or components")
        return self


class PoolMember(Config):
    """One model of the pool; an engine of the recipe, or a model that this run trained."""

    name: Name
    engine: Name | None = None
    """A key of `engines`; None for the run's own model named by `artifact`."""
    artifact: Literal["base", "sft"] | None = None
    sampling: Sampling | None = None
    """None takes that of the stage."""
    num_generations: PositiveInt = 1
    resources: Resources | None = None
    """None takes those of the stage."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.engine is None) == (self.artifact is None):
            raise ValueError(f"pool member {self.name}: give either engine or artifact")
        return self


class RespondConfig(Config):
    pool: Annotated[tuple[PoolMember, ...], Field(min_length=1)]
    models_per_prompt: PositiveInt | None = None
    """Members drawn for each prompt; the run's own models are always among them. None asks all."""
    sampling: Sampling = Sampling(temperature=1.0)
    engine: Literal["transformers", "vllm"] = "transformers"
    """What the run's own models run on; vllm divides one over all GPUs of its resources."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _pool_is_large_enough(self) -> Self:
        own = sum(member.artifact is not None for member in self.pool)
        wanted = self.models_per_prompt
        if wanted is not None and not own <= wanted <= len(self.pool):
            raise ValueError(
                f"models_per_prompt={wanted} does not fit a pool of {len(self.pool)} members, "
                f"of which {own} are the run's own and always drawn"
            )
        return self


class ProgramJudge(Config):
    """Rates the four aspects by program; `caravan.pocket.judge` says how. No model is asked."""

    kind: Literal["program"] = "program"


class LLMJudge(Config):
    """One request per aspect with all completions of a prompt in it (UltraFeedback)."""

    kind: Literal["llm"] = "llm"
    engine: Name
    sampling: Sampling = Sampling(temperature=0.0, max_completion_length=2048)


JudgeEngine = Annotated[ProgramJudge | LLMJudge, Field(discriminator="kind")]


class JudgeConfig(Config):
    judge: JudgeEngine
    aspects: tuple[
        Literal["helpfulness", "instruction_following", "honesty", "truthfulness"], ...
    ] = ("helpfulness", "instruction_following", "honesty", "truthfulness")
    resources: Resources = Resources()


class PairSource(Config):
    """Preference pairs that exist already, in any format of docs/data-formats.md."""

    name: Name
    origin: Annotated[FileSource | HubSource, Field(discriminator="kind")]
    license: str
    """SPDX identifier, or `unknown`."""
    provenance: str = ""
    """Who wrote and who preferred: a paper, a person, a program."""
    skill: Name


class PairConfig(Config):
    """Pairs of the completions that the judge has rated, or pairs of one's own."""

    sources: tuple[PairSource, ...] = ()
    """Pairs of one's own; then nobody is asked, and there is no sample_prompts, respond, judge."""
    rejected: Literal["random_worse", "worst"] = "random_worse"
    """Tülu 3: best mean rating against a random completion with a lower one; ties are excluded."""
    min_margin: NonNegativeFloat = 0.0
    """Smallest difference of mean ratings that makes a pair; 0 asks for any difference."""
    max_pairs: PositiveInt | None = None
    """A random choice of so many; None takes all."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _chooses_where_there_is_a_choice(self) -> Self:
        if self.sources and (self.rejected != "random_worse" or self.min_margin):
            raise ValueError(
                "rejected and min_margin choose among rated completions, and the pairs of sources "
                "are chosen already; leave them out (rejected: random_worse and min_margin: 0, "
                "where a recipe that this one extends has others)"
            )
        return self
