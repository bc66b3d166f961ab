"""Reinforcement learning with verifiable rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from caravan.config import Config
from caravan.recipe.common import Fraction, LearningRate, Name, Sampling
from caravan.recipe.training import PolicyConfig


class PPOConfig(Config):
    """Tülu 3, table 21."""

    kind: Literal["ppo"] = "ppo"
    gamma: Fraction = 1.0
    """Discount of later rewards (arXiv:1506.02438)."""
    gae_lambda: Fraction = 0.95
    """Of generalised advantage estimation (arXiv:1506.02438)."""
    epsilon: PositiveFloat = 0.2
    """Clip range of the policy ratio."""
    value_epsilon: PositiveFloat = 0.2
    """Clip range of the value."""
    value_coefficient: NonNegativeFloat = 0.1
    """Weight of the value model's loss."""
    value_learning_rate: LearningRate | None = None
    """Of the value model; None takes the policy's."""
    num_generations: PositiveInt = 1
    """Completions per prompt."""


class GRPOConfig(Config):
    """DeepSeekMath (arXiv:2402.03300); the settings of Tülu 3.1."""

    kind: Literal["grpo"] = "grpo"
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo"] = Field(
        default="dapo", exclude_if=lambda value: value == "dapo"
    )
    """`dapo`: all tokens count alike (arXiv:2503.14476); `grpo`: all completions do
    (arXiv:2402.03300); `dr_grpo`: tokens are divided by `max_completion_length`
    (arXiv:2503.20783); `cispo`: ratios are capped weights and clip no token (arXiv:2506.13585)."""
    importance_sampling_level: Literal["token", "sequence"] = Field(
        default="token", exclude_if=lambda value: value == "token"
    )
    """Whose ratio counts: each token's, or its completion's (GSPO, arXiv:2507.18071)."""
    epsilon: PositiveFloat = 0.2
    """Clip range of the policy ratio."""
    epsilon_high: PositiveFloat | None = None
    """Upper clip range (DAPO, arXiv:2503.14476); None takes `epsilon`. With `cispo` the greatest
    ratio itself; None takes 5."""
    num_generations: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt: the group."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation; False is Dr. GRPO (arXiv:2503.20783)."""
    max_sampling_rounds: PositiveInt = Field(default=1, exclude_if=lambda value: value == 1)
    """Rounds in which a step samples further prompts beside groups whose rewards agree (dynamic
    sampling, DAPO)."""
    mask_truncated_completions: bool = Field(default=False, exclude_if=lambda value: not value)
    """Do not train on completions without an end token (DAPO); their group still knows them."""

    @property
    def ratio_cap(self) -> float:
        """Greatest ratio, with `cispo` (5: arXiv:2510.13786)."""
        return 5.0 if self.epsilon_high is None else self.epsilon_high

    @model_validator(mode="after")
    def _clip_range_is_of_its_loss(self) -> Self:
        if self.loss_type == "cispo" and self.epsilon != 0.2:
            raise ValueError(
                "cispo clips no token, so epsilon has no part in it; leave it out (epsilon_high is "
                "the greatest ratio)"
            )
        return self

    def doubts(self) -> Iterator[str]:
        """What is allowed and was probably not meant: `field: what, and what to do`."""
        sequence = self.importance_sampling_level == "sequence"
        if sequence and self.loss_type != "cispo" and self.epsilon >= 0.1:
            yield (
                f"epsilon: {self.epsilon:g} is a range for ratios of tokens; those of completions "
                "stay within thousandths of 1, and none would be clipped; GSPO has epsilon: 3e-4 "
                "and epsilon_high: 4e-4"
            )
        if self.loss_type == "cispo" and self.ratio_cap < 1:
            yield (
                f"epsilon_high: {self.ratio_cap:g} is the greatest ratio with cispo, so every "
                "token would weigh less than it should; take more than 1, such as 5"
            )


class TransformersRollouts(Config):
    """From the policy in the training process, with the probabilities that are trained."""

    kind: Literal["transformers"] = "transformers"


class VLLMRollouts(Config):
    """From vLLM beside the training processes, which gets the policy's weights before each step.

    Its probabilities are nearly the policy's: each token's loss is weighted by the ratio of the
    two (truncated importance sampling, Yao et al. 2025).
    """

    kind: Literal["vllm"] = "vllm"
    tensor_parallel_size: PositiveInt = 1
    """GPUs, of as many training processes of a node, that one vLLM is divided over."""
    gpu_memory_utilization: Fraction = 0.5
    """Share of each GPU that it fills while it samples; it gives it back for the updates."""
    importance_ratio_cap: PositiveFloat = 2.0
    """Greatest weight of a token (C in the paper)."""


class RLVRConfig(PolicyConfig):
    """Reinforcement learning with verifiable rewards, with those of a reward model, or both."""

    learning_rate: LearningRate = 3e-7
    adam_epsilon: PositiveFloat = 1e-5
    algorithm: Annotated[PPOConfig | GRPOConfig, Field(discriminator="kind")] = PPOConfig()
    """`{kind: ppo}`, whose value model starts from a reward model, or `{kind: grpo}`."""
    max_length: PositiveInt = Field(
        default=4096, validation_alias=AliasChoices("max_length", "max_seq_length")
    )
    """In tokens, prompt and completion together."""
    max_steps: PositiveInt = 400
    """Rollout batches; each gives `num_epochs` x `num_mini_batches` optimiser steps."""
    prompts_per_step: PositiveInt = 224
    """Prompts of a rollout batch, each with `num_generations` completions."""
    num_epochs: PositiveInt = 1
    """Passes over one rollout batch (K in the paper)."""
    num_mini_batches: PositiveInt = 1
    """Parts of a rollout batch; each is an optimiser step."""
    beta: NonNegativeFloat = 0.05
    """KL penalty towards the reference policy."""
    verification_reward: NonNegativeFloat = 10.0
    """Reward of a verified completion (alpha in the paper); 0 only beside a reward model."""
    reward_model_multiplier: NonNegativeFloat = 0.0
    """Weight of the reward model's score, which is added to the reward; 0, as in Tülu 3, asks for
    none."""
    missing_eos_reward: float | None = -10.0
    """Replaces the reward of a completion without an end token; None leaves it."""
    sampling: Sampling = Sampling(temperature=1.0, max_completion_length=2048)
    """How completions are drawn; `top_p` must stay at 1."""
    prompts: Literal["verifiable", "all"] = "verifiable"
    """Those that have a verifier, or all: a reward model scores what no verifier can check."""
    rollouts: TransformersRollouts | VLLMRollouts = Field(
        default=TransformersRollouts(),
        discriminator="kind",
        exclude_if=lambda value: value == TransformersRollouts(),
    )
    """What samples: `{kind: transformers}`, or `{kind: vllm}`, which is made for GPUs."""
    skills: tuple[Name, ...] = ()
    """Skills whose prompts are trained on; empty takes all."""

    @property
    def reads_reward_model(self) -> bool:
        """Whether the value model starts from it, or completions are scored by it."""
        return self.algorithm.kind == "ppo" or self.reward_model_multiplier > 0

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Self:
        if self.reward_model_multiplier > 0:
            return self
        if self.prompts == "all":
            raise ValueError(
                "prompts: all takes prompts that no verifier can check, and with "
                "reward_model_multiplier 0 nothing would reward their completions; set "
                "reward_model_multiplier above 0, or leave prompts at verifiable"
            )
        if self.verification_reward == 0:
            raise ValueError(
                "verification_reward and reward_model_multiplier are both 0, so nothing is "
                "rewarded; set one of them above 0"
            )
        return self

    @model_validator(mode="after")
    def _all_weights_and_all_steps(self) -> Self:
        if self.quantization is not None:
            raise ValueError(
                "rlvr samples from the weights that it trains on, which in 4 bits are slow: leave "
                "quantization to sft and dpo, lora alone is for rlvr too"
            )
        if self.validation_share > 0:
            raise ValueError("rlvr holds no prompts out: leave validation_share at 0")
        if self.on_non_finite == "skip":
            raise ValueError("rlvr cannot leave a step out: on_non_finite is stop here")
        if self.num_train_epochs != 1:
            raise ValueError("rlvr takes max_steps rollout batches; it has no num_train_epochs")
        if self.max_length <= self.sampling.max_completion_length:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for a prompt beside "
                f"sampling.max_completion_length {self.sampling.max_completion_length}; raise the "
                "one or lower the other"
            )
        if self.sampling.top_p < 1:
            raise ValueError(
                "rlvr learns from the probabilities of what it samples, which top_p changes; "
                "leave sampling.top_p at 1"
            )
        if self.sampling.temperature == 0:
            raise ValueError(
                "rlvr learns from what it samples, and at sampling.temperature 0 all completions "
                "of a prompt are the same; take a temperature above 0"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.lora is None:
            return self
        if self.lora.dropout > 0:
            raise ValueError(
                "rlvr learns from the probabilities that it sampled with, which dropout would "
                "change; leave lora.dropout at 0"
            )
        if self.zero_stage == 3:
            raise ValueError(
                "with lora, rlvr keeps the frozen weights whole on each rank; take zero_stage 2 or "
                "less, or leave lora out"
            )
        if isinstance(self.rollouts, VLLMRollouts):
            raise ValueError(
                "vLLM is given the weights of a whole policy, not of adapters; with lora leave "
                "rollouts at {kind: transformers}"
            )
        return self

    @model_validator(mode="after")
    def _each_vllm_has_processes_of_one_node(self) -> Self:
        if isinstance(self.rollouts, VLLMRollouts):
            on_node = self.resources.gpus or self.resources.processes
            if on_node % self.rollouts.tensor_parallel_size:
                raise ValueError(
                    f"rollouts.tensor_parallel_size {self.rollouts.tensor_parallel_size} does not "
                    f"divide the {on_node} training processes of a node (resources.gpus, or "
                    "processes where there are none); take a number that does"
                )
        return self
