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
from caravan.recipe.evaluation import EvaluateConfig, ReportConfig
from caravan.recipe.preferences import JudgeConfig, PairConfig, RespondConfig, SamplePromptsConfig
from caravan.recipe.rlvr import RLVRConfig
from caravan.recipe.sources import CurateConfig
from caravan.recipe.training import DPOConfig, RewardModelConfig, SFTConfig


class Recipe(Config):
    name: Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 17
    base_model: BaseModelConfig
    engines: dict[Name, EngineConfig] = {}  # noqa: RUF012
    curate: CurateConfig
    synthesize: SynthesizeConfig | None = None
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    mix: MixConfig = MixConfig()
    sft: SFTConfig
    sample_prompts: SamplePromptsConfig | None = None
    respond: RespondConfig | None = None
    judge: JudgeConfig | None = None
    pair: PairConfig | None = None
    dpo: DPOConfig | None = None
    reward_model: RewardModelConfig | None = None
    rlvr: RLVRConfig | None = None
    evaluate: EvaluateConfig
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = list(problems(self))
        if found:
            raise ValueError("\n".join(found))
        return self
