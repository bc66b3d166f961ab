"""The updates of a step: the losses of policy and value model, pass by pass.

A departure from open-instruct's Tülu 3 code: losses are averaged over the tokens of a whole
mini-batch instead of within each forward pass.

Shapes: S completion tokens of a pass, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from caravan.recipe import PPOConfig
from caravan.training.batching import epoch_order
from caravan.training.optim import NonFiniteError
from caravan.training.rl.forward import Pass, gather
from caravan.training.rl.grpo import grpo_loss, token_scale
from caravan.training.rl.learner import Learner, Networks
from caravan.training.rl.metrics import Sums, add, described
from caravan.training.rl.ppo import (
    PolicyLoss,
    clipped_surrogate,
    clipped_value_loss,
    importance_weights,
)
from caravan.training.rl.rollout import RolloutBatch
from caravan.training.rl.targets import Targets


class _MiniBatch(NamedTuple):
    """One update, and what the sums over its passes are divided by."""

    update: int
    completions: int
    tokens: int
    """Of the completions."""


@dataclass(frozen=True)
class Updates:
    """Those that one batch of rollouts gives."""

    learner: Learner
    rollouts: RolloutBatch
    targets: Targets
    sums: Sums
    """Get what there is to say of each pass."""
    metrics: dict[str, float]
    """Get what there is to say of the last update."""

    def make(self, first: int, order_seed: int) -> None:
        """All epochs and mini-batches over the completions that are trained on.

        Args:
            first: number of the first update, from 0 over the whole run.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
        """
        config, kept = self.learner.config, self.targets.kept
        update, skipped = first, 0
        for epoch in range(config.num_epochs):
            order = epoch_order(len(kept), epoch, order_seed)
            for chosen in np.array_split(order, config.num_mini_batches):
                if len(chosen):
                    self._mini_batch(update, [kept[int(i)] for i in chosen])
                else:
                    skipped += 1
                update += 1
        self.metrics["batch/updates_skipped"] = float(skipped)

    def _mini_batch(self, update: int, indices: Sequence[int]) -> None:
        learner = self.learner
        tokens = int(self.rollouts.lengths[list(indices)].sum())
        whole = _MiniBatch(update, len(indices), tokens)

        def backward(models: Networks, part: Pass) -> Sums:
            sums = self._policy_pass(models.policy, whole, part)
            if models.value is not None:
                add(sums, self._value_pass(models.value, whole, part))
            return sums

        for of_pass in learner.lanes.map(backward, learner.passes_of(self.rollouts, indices)):
            add(self.sums, of_pass)
        learner.lanes.gather()
        result = learner.policy.step(update)
        self.metrics["learning_rate"] = result.learning_rate
        self.metrics["grad_norm"] = result.grad_norm
        if learner.value is not None:
            result = learner.value.step(update)
            self.metrics["value/learning_rate"] = result.learning_rate
            self.metrics["value/grad_norm"] = result.grad_norm

    def _policy_pass(self, model: PreTrainedModel, whole: _MiniBatch, part: Pass) -> Sums:
        learner = self.learner
        batch, first = part.batch.to(learner.device), self.targets.old_logprobs is None
        seen = learner.policy.forward(partial(learner.tokens, batch=batch, entropy=first), model)
        old = seen.logprobs.detach() if first else self._of(self.targets.old_logprobs, part)
        weights = self._importance_weights(old, part)
        loss = self._policy_loss(seen.logprobs, old, weights, whole, part)
        self._check_finite(whole.update, "policy loss", loss.loss, part)
        share = loss.loss / whole.tokens
        learner.policy.backward(share if part.counts else 0.0 * share)
        if not part.counts:
            return Sums(float)
        sums = Sums(
            float,
            {
                "loss/policy": loss.loss.item(),
                "clip_ratio": loss.clipped.item(),
                "policy/approx_kl": loss.approx_kl.item(),
                "update_tokens": len(seen.logprobs),
            },
        )
        if weights is not None and (cap := learner.models.sampler.importance_ratio_cap):
            sums["mismatch/importance_weight"] = weights.sum().item()
            sums["mismatch/capped_ratio"] = (weights >= cap).sum().item()
        if first:
            reference = self.targets.reference if learner.models.reference is not None else None
            as_sampled = described(
                self.rollouts,
                part,
                seen.logprobs.detach().cpu(),
                seen.entropies.cpu(),
                None if reference is None else gather(reference, self.rollouts.mask, part.indices),
            )
            add(sums, as_sampled)
        return sums

    def _importance_weights(self, old: Tensor, part: Pass) -> Tensor | None:
        cap = self.learner.models.sampler.importance_ratio_cap
        if cap is None:
            return None
        return importance_weights(old, self._of(self.rollouts.sampler_logprobs, part), cap=cap)

    def _policy_loss(
        self, logprobs: Tensor, old: Tensor, weights: Tensor | None, whole: _MiniBatch, part: Pass
    ) -> PolicyLoss:
        config, targets = self.learner.config, self.targets
        algorithm, advantages = config.algorithm, self._of(targets.advantages, part)
        if isinstance(algorithm, PPOConfig):
            return clipped_surrogate(
                logprobs, old, advantages, epsilon=algorithm.epsilon, weights=weights
            )
        lengths = self.rollouts.lengths[part.indices]
        scale = token_scale(
            algorithm,
            lengths,
            mean_length=whole.tokens / whole.completions,
            max_length=config.sampling.max_completion_length,
        )
        return grpo_loss(
            logprobs,
            old,
            self._of(targets.reference, part),
            advantages,
            lengths,
            algorithm,
            beta=config.beta,
            weights=weights,
            scale=None if scale is None else scale.to(logprobs.device),
        )

    def _value_pass(self, model: PreTrainedModel, whole: _MiniBatch, part: Pass) -> Sums:
        learner, targets = self.learner, self.targets
        algorithm = learner.config.algorithm
        assert isinstance(algorithm, PPOConfig)
        assert learner.value is not None
        batch = part.batch.to(learner.device)
        values = learner.value.forward(partial(learner.values, batch=batch), model)
        loss = clipped_value_loss(
            values,
            self._of(targets.old_values, part),
            self._of(targets.returns, part),
            epsilon=algorithm.value_epsilon,
        )
        self._check_finite(whole.update, "value loss", loss.loss, part)
        share = algorithm.value_coefficient * loss.loss / whole.tokens
        learner.value.backward(share if part.counts else 0.0 * share)
        if not part.counts:
            return Sums(float)
        return Sums(
            float, {"loss/value": loss.loss.item(), "value/clip_ratio": loss.clipped.item()}
        )

    def _of(self, known: Tensor | None, part: Pass) -> Tensor:
        """[S] what is known of the tokens of a pass, where passes are computed."""
        assert known is not None
        return gather(known, self.rollouts.mask, part.indices).to(self.learner.device)

    def _check_finite(self, update: int, what: str, loss: Tensor, part: Pass) -> None:
        if math.isfinite(loss.item()):
            return
        ids = sorted({self.rollouts.rollouts[i].prompt.row.id for i in part.indices.tolist()})
        raise NonFiniteError(
            f"update {update}: the {what} is {loss.item()} on completions of "
            f"{', '.join(ids[:8])}; lower learning_rate, or look at the rewards and the KL of the "
            "steps before"
        )
