"""The configs of stages that depend on more than their own part of the recipe.

A stage's config is all of the recipe that it sees, so it is also all that its key depends on.
"""

from __future__ import annotations

from caravan.recipe import (
    Config,
    DecontaminateConfig,
    EngineConfig,
    EvalTask,
    JudgeConfig,
    PoolMember,
    Resources,
    Sampling,
    SynthesizeConfig,
)


class SynthesizeStageConfig(Config):
    synthesize: SynthesizeConfig
    engines: dict[str, EngineConfig]
    """The engines that the tasks name."""

    @property
    def resources(self) -> Resources:
        return self.synthesize.resources


class DecontaminateStageConfig(Config):
    decontaminate: DecontaminateConfig
    tasks: tuple[EvalTask, ...]
    """The evaluation tasks whose prompts no training row may repeat."""

    @property
    def resources(self) -> Resources:
        return self.decontaminate.resources


class RespondStageConfig(Config):
    member: PoolMember
    engine: EngineConfig | None
    """None where the member is a model of this run, given as the input `model`."""
    sampling: Sampling
    resources: Resources = Resources()


class JudgeStageConfig(Config):
    judge: JudgeConfig
    engine: EngineConfig | None
    """The judge's engine; None for a program judge."""

    @property
    def resources(self) -> Resources:
        return self.judge.resources
