"""What every training stage has, and what those of policies have; SFT, DPO and the reward model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from caravan.config import Config
from caravan.recipe.common import Epochs, Fraction, LearningRate, Name, PassTokens, Resources
from caravan.recipe.losses import flatten_schema, gather_options, without_options
from caravan.training.losses.dpo import DPO
from caravan.training.losses.hinge import Hinge
from caravan.training.losses.ipo import IPO
from caravan.training.losses.kto import KTO
from caravan.training.losses.length_normalised_dpo import LengthNormalisedDPO
from caravan.training.losses.orpo import ORPO
from caravan.training.losses.robust_dpo import RobustDPO
from caravan.training.losses.simpo import SimPO


class LoRAConfig(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), merged into the weights at the end."""

    rank: PositiveInt = 16
    """Of the two factors of each update."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Of what the adapters are given."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of linear layers, such as `q_proj`; empty takes all but the head."""


class TrainingConfig(Config):
    """What every training stage has. Defaults are Tülu 3's where it has one."""

    learning_rate: LearningRate
    """Of AdamW, at its highest."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up: down to 0, or as it is."""
    warmup_ratio: Fraction = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    adam_epsilon: PositiveFloat = 1e-8
    """Of AdamW, added to the denominator."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm above which a gradient is scaled down to it."""
    num_train_epochs: Epochs = 1.0
    """Passes over the data; may be a part of one."""
    max_steps: PositiveInt | None = None
    """Overrides `num_train_epochs`."""
    max_length: PositiveInt = Field(
        default=2048, validation_alias=AliasChoices("max_length", "max_seq_length")
    )
    """In tokens, prompt and response together."""
    tokens_per_pass: PassTokens = 16_384
    """Tokens of one forward pass on one device, without padding; splits a step into passes. `auto`
    takes the most that should fit into the memory of the device that the stage finds itself on."""
    bf16: bool = True
    """Autocast to bfloat16; the weights and the optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    save_steps: PositiveInt = 200
    """Optimiser steps between checkpoints."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage, used when more than one process trains; 0 replicates the model."""
    zero_offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in the host's memory: the optimiser's state, or (stage 3) weights too."""
    validation_share: Fraction = 0.0
    """Of the rows, which are not trained on: their loss is measured as `validation/loss`."""
    validation_steps: PositiveInt = 100
    """Optimiser steps between measurements of held-out rows; one is made at the end, too."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or a gradient is not finite; a run skips a few steps at most."""
    lora: LoRAConfig | None = None
    """Train adapters on frozen weights; None trains all weights."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen weights in 4 bits (QLoRA, arXiv:2305.14314); needs `lora` and a GPU."""
    resources: Resources = Resources()

    @property
    def pass_tokens(self) -> int:
        """`tokens_per_pass` of a stage that has begun, which has put a number there."""
        assert self.tokens_per_pass != "auto"
        return self.tokens_per_pass

    @model_validator(mode="after")
    def _parallel_options_fit(self) -> Self:
        if self.zero_offload != "none" and self.zero_stage == 0:
            raise ValueError("zero_offload needs zero_stage 1, 2 or 3")
        if self.zero_offload == "all" and self.zero_stage != 3:
            raise ValueError(
                "zero_offload: all moves weights too, which needs zero_stage 3; say optimizer"
            )
        if self.quantization is not None and self.lora is None:
            raise ValueError("quantized weights cannot be trained themselves: set lora too")
        if self.quantization is not None and self.zero_stage == 3:
            raise ValueError(
                "4-bit weights cannot be spread over ranks: use zero_stage 2, or no quantization"
            )
        return self


class SelectConfig(Config):
    """Which of the policies that a stage goes through is its result: the best on these tasks, or
    on rows that are held out."""

    every: PositiveInt
    """The policy is kept after every so many steps, and after the last."""
    tasks: tuple[Name, ...] = ()
    """Names under `evaluate.tasks`, of the suite `dev`; the mean of their scores decides. Where
    there are none, the loss of the rows does that `validation_share` holds out."""


class PolicyConfig(TrainingConfig):
    """What the stages have that train a policy: SFT, DPO and RLVR."""

    select: SelectConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    """Choose among the policies along the way; None takes the last."""

    @model_validator(mode="after")
    def _has_policies_to_select_from(self) -> Self:
        if self.select and self.max_steps and self.select.every >= self.max_steps:
            raise ValueError(
                f"select.every {self.select.every} keeps no policy before the last of max_steps "
                f"{self.max_steps}, so there is nothing to select from; lower it, or leave select "
                "out"
            )
        if self.select and not self.select.tasks and not self.validation_share:
            raise ValueError(
                "select has no tasks: name some, or let sft and dpo select by the loss of held-out "
                "rows, with a validation_share above 0"
            )
        return self


class SFTConfig(PolicyConfig):
    """Supervised fine-tuning on the mix; the loss falls on the assistant's turns."""

    learning_rate: LearningRate = 5e-6
    warmup_ratio: Fraction = 0.03
    num_train_epochs: Epochs = 2.0
    max_length: PositiveInt = Field(
        default=4096, validation_alias=AliasChoices("max_length", "max_seq_length")
    )
    sequences_per_step: PositiveInt = 128
    """Conversations per optimiser step, over all ranks."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """`mean` divides by the supervised tokens of the whole optimiser step; `sum` does not."""


DPOLoss = Annotated[
    LengthNormalisedDPO | DPO | RobustDPO | Hinge | IPO | SimPO | KTO | ORPO,
    Field(discriminator="loss_type"),
]
"""What a preference stage minimises. Each has options of its own; see docs/training.md."""


class DPOConfig(PolicyConfig):
    """Preference optimisation. The loss and its options are written flat, beside the rest:

    dpo: {loss_type: simpo, beta: 2.5, simpo_gamma: 1.4, learning_rate: 5e-7}
    """

    learning_rate: LearningRate = 5e-7
    warmup_ratio: Fraction = 0.1
    loss: DPOLoss = LengthNormalisedDPO()
    """`loss_type` and its options."""
    pairs_per_step: PositiveInt = 128
    """Preference pairs per optimiser step, over all ranks."""

    @model_validator(mode="before")
    @classmethod
    def _gather_loss(cls, data: Any) -> Any:
        return gather_options(data, DPOLoss) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _ranks_stay_in_step(self) -> Self:
        if self.loss.needs_divergence and self.zero_stage == 3:
            raise ValueError(
                f"loss_type {self.loss.loss_type} measures a divergence on passes of its own, "
                "whose number differs between ranks, and zero_stage 3 needs equal ones; use "
                "zero_stage 2"
            )
        return self

    @model_serializer(mode="wrap")
    def _write_flat(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        loss: dict[str, Any] = data.pop("loss", {})
        return data | loss

    def derive(self, **changes: object) -> Self:
        """As of every config; the options of another loss do not carry over."""
        loss_type = changes.get("loss_type", self.loss.loss_type)
        kept = without_options(self.model_dump(), loss_type, DPOLoss)
        return type(self).model_validate(kept | changes)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described = super().__get_pydantic_json_schema__(schema, handler)
        flatten_schema(handler.resolve_ref_schema(described), DPOLoss)
        return described


class RewardModelConfig(TrainingConfig):
    """Tülu 3, table 36."""

    learning_rate: LearningRate = 3e-6
    pairs_per_step: PositiveInt = 256
    """Preference pairs per optimiser step, over all ranks."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of a term that draws the mean reward to 0, which the preferences leave free."""
    rating_margin: NonNegativeFloat = 0.0
    """Margin of the rewards that is asked for, per point of difference between the ratings."""
    model_name_or_path: str | None = None
    """A reward model that exists, taken as it is; None trains one from the run's SFT model."""

    @model_validator(mode="after")
    def _full_precision(self) -> Self:
        if self.quantization is not None:
            raise ValueError("a reward model is trained from weights in full precision, or on lora")
        return self
