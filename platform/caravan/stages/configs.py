"""The configs of stages that depend on more than their own part of the recipe.

A stage's config is all of the recipe that it sees, so it is also all that its key depends on.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from caravan.recipe import (
    Config,
    CurateConfig,
    DecontaminateConfig,
    DPOConfig,
    EngineConfig,
    EvalTask,
    EvaluateConfig,
    JudgeConfig,
    Name,
    PairConfig,
    PassTokens,
    PolicyConfig,
    PoolMember,
    Recipe,
    ReportConfig,
    Resources,
    RLVRConfig,
    Sampling,
    SFTConfig,
    SynthesizeConfig,
)


class CurateStageConfig(CurateConfig):
    own_verifiers: tuple[Name, ...] = ()
    """Names that rows may have for a verifier, beside those that Caravan brings."""


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


OWN_MODEL_ROWS = 256
"""Sequences that a model of the run decodes at once, as a member of its pool."""


class RespondStageConfig(Config):
    member: PoolMember
    engine: EngineConfig | None
    """None where the member is a model of this run, given as the input `model`."""
    own_engine: Literal["transformers", "vllm"] = Field(
        default="transformers", exclude_if=lambda value: value == "transformers"
    )
    """What a model of this run runs on."""
    sampling: Sampling
    drawn_from: tuple[str, ...] = ()
    """Names of the members of which `drawn` answer each prompt; empty where all answer all."""
    drawn: int = 0
    resources: Resources = Resources()

    def answers(self, prompt_id: str) -> bool:
        """Whether this member answers the prompt: the run's own models always do, of the others
        some are drawn. Every member knows the draw without asking: it depends on names only."""
        if self.member.artifact is not None or not self.drawn_from:
            return True
        ranks = sorted(self.drawn_from, key=lambda name: _rank(prompt_id, name))
        return self.member.name in ranks[: self.drawn]


def _rank(prompt_id: str, name: str) -> bytes:
    return hashlib.sha256(f"{prompt_id}/{name}".encode()).digest()


class JudgeStageConfig(Config):
    judge: JudgeConfig
    engine: EngineConfig | None
    """The judge's engine; None for a program judge."""

    @property
    def resources(self) -> Resources:
        return self.judge.resources


class ReadPairsStageConfig(Config):
    pair: PairConfig
    decontaminate: DecontaminateConfig
    tasks: tuple[EvalTask, ...]
    """The evaluation tasks whose prompts no pair may repeat."""

    @property
    def resources(self) -> Resources:
        return self.pair.resources


class ReferenceStageConfig(Config):
    """Of `dpo`, all that the log-probabilities of the reference policy depend on."""

    max_length: int
    tokens_per_pass: PassTokens
    bf16: bool
    zero_stage: Literal[0, 1, 2, 3] = 0
    zero_offload: Literal["none", "optimizer", "all"] = "none"
    resources: Resources = Resources()
    not_in_key: ClassVar[frozenset[str]] = frozenset({"zero_stage", "zero_offload"})
    """Where the weights lie: it changes no log-probability but by rounding."""

    @classmethod
    def of(cls, dpo: DPOConfig) -> Self:
        """On the ranks that train from them, which hold more of the same model."""
        return cls(
            max_length=dpo.max_length,
            tokens_per_pass=dpo.tokens_per_pass,
            bf16=dpo.bf16,
            zero_stage=dpo.zero_stage,
            zero_offload=dpo.zero_offload,
            resources=dpo.resources,
        )


class PolicyStageConfig(PolicyConfig):
    """Which policies a stage gives out, in place of `select`: by which tasks another stage selects
    one of them is not its matter."""

    keep_every: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)
    """Steps between two policies that are given out to select from; None gives out the last one
    alone."""
    by_loss: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether the stage itself selects the one with the lowest loss of held-out rows."""

    @classmethod
    def of(cls, policy: PolicyConfig, **more: object) -> Self:
        kept: dict[str, Any] = {**policy.model_dump(exclude={"select"}), **more}
        if select := policy.select:
            kept |= {"keep_every": select.every, "by_loss": not select.tasks}
        return cls(**kept)


class SFTStageConfig(SFTConfig, PolicyStageConfig):
    pass


class DPOStageConfig(DPOConfig, PolicyStageConfig):
    pass


class RLVRStageConfig(RLVRConfig, PolicyStageConfig):
    verifiers: dict[Name, str] = {}  # noqa: RUF012
    """The recipe's own, by name; rows say which they mean."""


class ReportStageConfig(ReportConfig):
    selected_by: tuple[Name, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Tasks whose scores RLVR's policy was selected by: there they are too high."""
    earlier_selected_by: dict[Name, tuple[Name, ...]] = Field(
        default={}, exclude_if=lambda value: not value
    )
    """The same of the policies before it, by their stage."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        tasks = {stage: select.tasks for stage, select in recipe.selections.items()}
        of_rlvr = tasks.pop("rlvr", ())
        return cls(**recipe.report.model_dump(), selected_by=of_rlvr, earlier_selected_by=tasks)

    @property
    def selections(self) -> dict[str, tuple[str, ...]]:
        """Tasks that policies were selected by, by their stage."""
        of_rlvr = {"rlvr": self.selected_by} if self.selected_by else {}
        return self.earlier_selected_by | of_rlvr


class EvaluateStageConfig(Config):
    evaluate: EvaluateConfig
    engine: EngineConfig | None = None
    """The engine of an LLM judge; None where a program judges, or nobody does."""
    safety_engine: EngineConfig | None = None
    """The engine of the safety judge."""
    verifiers: dict[Name, str] = {}  # noqa: RUF012
    """The recipe's own that the tasks name."""

    @property
    def resources(self) -> Resources:
        return self.evaluate.resources
