"""The models of RLVR on this rank: those that are trained, with their optimisers, and the passes
through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.recipe import PPOConfig, RLVRConfig
from caravan.training.batching import TokenBatch
from caravan.training.checkpoint import States
from caravan.training.frozen import Frozen
from caravan.training.lanes import Lanes, lanes_on
from caravan.training.optim import Updater, updater_for
from caravan.training.parallel.ranks import current
from caravan.training.precision import autocast
from caravan.training.rl.forward import Pass, PolicyTokens, passes, policy_tokens, values_before
from caravan.training.rl.rollout import RolloutBatch
from caravan.training.rl.samplers import Sampler


@dataclass(frozen=True)
class RLModels:
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    reference: Frozen | None
    """The policy as it was; None where there is no KL penalty to pay."""
    value: PreTrainedModel | None
    """PPO's value model; None for GRPO."""
    reward: Frozen | None = None
    """The reward model that scores completions; None where its score does not count."""


class Networks(nn.Module):
    """The models of one lane."""

    def __init__(self, models: RLModels) -> None:
        super().__init__()
        self.policy, self.value = models.policy, models.value
        self.reference = None if models.reference is None else models.reference.model


class Learner:
    """The policy, with PPO the value model, and the reference beside them."""

    def __init__(
        self, models: RLModels, config: RLVRConfig, device: torch.device, *, cpus: int
    ) -> None:
        """
        Args:
            device: where passes are computed.
            cpus: cores for passes.
        """
        self.models, self.config, self.device = models, config, device
        lanes = lanes_on(device, cpus) if current().count == 1 else 1
        self.lanes = Lanes(Networks(models), lanes)
        steps = config.max_steps * self.updates_per_step
        self.policy = updater_for(models.policy, config, steps)
        self.value: Updater | None = None
        if isinstance(config.algorithm, PPOConfig):
            assert models.value is not None
            if config.algorithm.value_learning_rate:
                config = config.derive(learning_rate=config.algorithm.value_learning_rate)
            self.value = updater_for(models.value, config, steps, name="value")

    @property
    def updates_per_step(self) -> int:
        return self.config.num_epochs * self.config.num_mini_batches

    def state(self) -> States:
        """What a checkpoint holds."""
        updaters = [self.policy] if self.value is None else [self.policy, self.value]
        return States([updater.state() for updater in updaters])

    def tokens(self, model: PreTrainedModel, batch: TokenBatch, entropy: bool) -> PolicyTokens:
        """What a policy says about the completions of a pass; see `policy_tokens`."""
        with autocast(self.device.type, self.config.bf16):
            return policy_tokens(
                model, batch, temperature=self.config.sampling.temperature, entropy=entropy
            )

    def values(self, model: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """What a value model says about them; see `values_before`."""
        with autocast(self.device.type, self.config.bf16):
            return values_before(model, batch)

    def passes_of(self, rollouts: RolloutBatch, indices: Sequence[int]) -> list[Pass]:
        """This rank's passes over these completions."""
        return passes(
            rollouts.token_rows,
            indices,
            tokens_per_pass=self.config.pass_tokens,
            pad_token_id=self.models.tokenizer.pad_token_id,
            lanes=len(self.lanes.models),
        )
