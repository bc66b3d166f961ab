"""The whole recipe."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from caravan.config import Config
from caravan.recipe.base import BaseModelConfig
from caravan.recipe.checks import problems
from caravan.recipe.common import Name
from caravan.recipe.data import DecontaminateConfig, MixConfig, SynthesizeConfig
from caravan.recipe.engines import EngineConfig
from caravan.recipe.evaluation import EvalTask, EvaluateConfig, ReportConfig
from caravan.recipe.preferences import (
    JudgeConfig,
    PairConfig,
    PairSource,
    RespondConfig,
    SamplePromptsConfig,
)
from caravan.recipe.rlvr import RLVRConfig
from caravan.recipe.sources import CurateConfig, Source
from caravan.recipe.training import DPOConfig, RewardModelConfig, SelectConfig, SFTConfig
from caravan.recipe.verifiers import VerifierFunction


class Recipe(Config):
    """A stage that is left out is not run; the next one starts from the model before it, down to
    the base model."""

    name: Name
    """Of the recipe, and of the runs that are made with it."""
    description: str = ""
    """A sentence for those who look at the runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 17
    """All that is random in a run comes from it."""
    base_model: BaseModelConfig
    """The model that the run starts from."""
    engines: dict[Name, EngineConfig] = {}  # noqa: RUF012
    """Models beside those of the run, by a name of yours: teachers, members of the pool, judges."""
    verifiers: dict[Name, VerifierFunction] = {}  # noqa: RUF012
    """Verifiers of your own: `polite: polite.py:is_polite` names the file, relative to the recipe's
    directory, and its function `(completion, ground_truth)`, which is `verify` where none is named.
    The run executes that file."""
    curate: CurateConfig | None = None
    synthesize: SynthesizeConfig | None = None
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    mix: MixConfig = MixConfig()
    sft: SFTConfig | None = None
    sample_prompts: SamplePromptsConfig | None = None
    respond: RespondConfig | None = None
    judge: JudgeConfig | None = None
    pair: PairConfig | None = None
    dpo: DPOConfig | None = None
    reward_model: RewardModelConfig | None = None
    rlvr: RLVRConfig | None = None
    evaluate: EvaluateConfig | None = None
    report: ReportConfig = ReportConfig()

    @property
    def reads_rows(self) -> bool:
        """Whether a stage takes the rows of curate: only then are they made."""
        return any(stage is not None for stage in (self.sft, self.sample_prompts, self.rlvr))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of curate, where its rows are made."""
        return self.curate.sources if self.curate is not None and self.reads_rows else ()

    @property
    def pair_sources(self) -> tuple[PairSource, ...]:
        return self.pair.sources if self.pair is not None else ()

    @property
    def tasks(self) -> tuple[EvalTask, ...]:
        return self.evaluate.tasks if self.evaluate is not None else ()

    @property
    def selections(self) -> dict[str, SelectConfig]:
        """How the policy of a stage is selected by tasks, by the stage (`sft`, `dpo`, `rlvr`)."""
        stages = {"sft": self.sft, "dpo": self.dpo, "rlvr": self.rlvr}
        found = {name: s.select for name, s in stages.items() if s is not None and s.select}
        return {name: select for name, select in found.items() if select.tasks}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = list(problems(self))
        if found:
            raise ValueError("\n".join(found))
        return self
