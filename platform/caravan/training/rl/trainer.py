"""One step of reinforcement learning: roll out, score, update.

The policy that samples is always the policy that is trained: nothing is stale, so the ratio of the
first update is 1 up to the rounding between passes. Where another program samples, with nearly its
probabilities, tokens are weighted for the difference. All randomness of step k comes from
(seed, k); a run is resumed from weights, optimiser moments and the step number alone.

Departures from open-instruct's Tülu 3 code: losses are averaged over the tokens of a whole
mini-batch instead of within each forward pass; sampling and training take turns.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.errors import StageError
from caravan.recipe import GRPOConfig, PPOConfig, RLVRConfig
from caravan.training.batching import TokenBatch, epoch_order
from caravan.training.checkpoint import States
from caravan.training.frozen import Frozen
from caravan.training.lanes import Lanes, lanes_on
from caravan.training.optim import NonFiniteError, Updater, updater_for
from caravan.training.parallel.ranks import current
from caravan.training.precision import autocast
from caravan.training.rl.advantages import (
    generalized_advantages,
    group_advantages,
    token_rewards,
    whiten,
)
from caravan.training.rl.dynamic_sampling import sample_in_rounds
from caravan.training.rl.forward import (
    Pass,
    PolicyTokens,
    gather,
    passes,
    policy_tokens,
    scatter,
    values_before,
)
from caravan.training.rl.grpo import grpo_loss, token_scale
from caravan.training.rl.metrics import Sums, add, described, means_of, rollout_metrics
from caravan.training.rl.ppo import (
    PolicyLoss,
    clipped_surrogate,
    clipped_value_loss,
    importance_weights,
)
from caravan.training.rl.rollout import RLPrompt, RolloutBatch, collect
from caravan.training.rl.samplers import Sampler
from caravan.training.rl.scores import Scorer
from caravan.training.seeds import derived_seed
from caravan.verifiers import Verifier


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


@dataclass(frozen=True)
class RLStep:
    metrics: Mapping[str, float]
    rollouts: RolloutBatch
    advantages: Tensor
    """[N] mean over each completion's tokens; 0 where it was not trained on."""


@dataclass
class _Targets:
    """What the updates of a step aim at. All [N, R], 0 where not known."""

    kept: list[int]
    """Completions that are trained on."""
    advantages: Tensor
    old_logprobs: Tensor | None = None
    """None where the step is one update: the policy of the update is the policy that sampled."""
    reference: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None


class _MiniBatch(NamedTuple):
    """One update, and what the sums over its passes are divided by."""

    update: int
    completions: int
    tokens: int
    """Of the completions."""


class _Measured(NamedTuple):
    """The completions `kept` under the models as they were when the step began. All [N, R]."""

    logprobs: Tensor
    reference: Tensor
    values: Tensor


@dataclass
class RLTrainer:
    models: RLModels
    config: RLVRConfig
    verifiers: Mapping[str, Verifier]
    seed: int
    device: torch.device
    """Where passes are computed."""
    cpus: int = 1
    """Cores for passes, and for verifiers that start processes."""
    _lanes: Lanes[Networks] = field(init=False)
    _policy: Updater = field(init=False)
    _value: Updater | None = field(init=False, default=None)
    _score: Scorer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config = self.config
        lanes = lanes_on(self.device, self.cpus) if current().count == 1 else 1
        self._lanes = Lanes(Networks(self.models), lanes)
        if self.models.reward is not None:
            self._score = Scorer(
                self.models.reward,
                tokens_per_pass=config.pass_tokens,
                bf16=config.bf16,
                pad_token_id=self.models.tokenizer.pad_token_id,
                lanes=lanes,
            )
        steps = config.max_steps * self.updates_per_step
        self._policy = updater_for(self.models.policy, config, steps)
        if isinstance(config.algorithm, PPOConfig):
            assert self.models.value is not None
            if config.algorithm.value_learning_rate:
                config = config.derive(learning_rate=config.algorithm.value_learning_rate)
            self._value = updater_for(self.models.value, config, steps, name="value")

    @property
    def updates_per_step(self) -> int:
        return self.config.num_epochs * self.config.num_mini_batches

    def state(self) -> States:
        """What a checkpoint holds."""
        updaters = [self._policy] if self._value is None else [self._policy, self._value]
        return States([updater.state() for updater in updaters])

    def policy_weights(self) -> Mapping[str, Tensor]:
        """Of the policy as it is, whole; every rank asks, and the leading one gets them."""
        return self._policy.weights()

    def finish(self) -> None:
        """Make the leader's policy a plain model with its whole weights; no step follows."""
        self._policy.finish()

    def step(
        self, step: int, prompts: Sequence[RLPrompt], spare: Sequence[RLPrompt] = ()
    ) -> RLStep:
        """Rollout batch `step`, counted from 0, and the updates made with it.

        Args:
            spare: prompts for further rounds of dynamic sampling.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
            StageError: no verifier could decide about any completion.
            DataError: a row cannot be verified as it is.
        """
        started = time.perf_counter()
        self.models.sampler.load(self._policy)
        rollouts = self._roll_out(prompts, spare, derived_seed(self.seed, "rollouts", step))
        self.models.sampler.rest()
        if not rollouts.counts.any():
            raise StageError(
                f"step {step}: every verifier failed, on all {len(rollouts.rollouts)} completions, "
                "so nothing is known to learn from; the log has the reasons"
            )
        sampled = time.perf_counter()
        sums: Sums = defaultdict(float)
        metrics = rollout_metrics(rollouts)
        if isinstance(self.config.algorithm, PPOConfig):
            targets = self._ppo_targets(rollouts, self.config.algorithm, sums, metrics)
        else:
            targets = self._grpo_targets(rollouts, self.config.algorithm, sums, metrics)
        self._update(step, rollouts, targets, sums, metrics)
        of_all: Sums = defaultdict(float)
        for of_rank in current().collect([sums]):
            add(of_all, of_rank)
        metrics |= means_of(of_all)
        finished = time.perf_counter()
        metrics |= {
            "perf/rollout_seconds": sampled - started,
            "perf/train_seconds": finished - sampled,
            "perf/tokens_per_second": sum(row.length for row in rollouts.token_rows)
            / (finished - started),
        }
        mean_advantages = targets.advantages.sum(1) / rollouts.lengths
        return RLStep(metrics, rollouts, mean_advantages)

    def _roll_out(
        self, prompts: Sequence[RLPrompt], spare: Sequence[RLPrompt], seed: int
    ) -> RolloutBatch:
        algorithm = self.config.algorithm

        def collected(chosen: Sequence[RLPrompt], seed: int) -> RolloutBatch:
            return collect(
                self.models.sampler,
                self.models.tokenizer,
                chosen,
                self.verifiers,
                num_generations=algorithm.num_generations,
                sampling=self.config.sampling,
                verification_reward=self.config.verification_reward,
                missing_eos_reward=self.config.missing_eos_reward,
                seed=seed,
                workers=self.cpus,
                score=self._score,
                reward_model_multiplier=self.config.reward_model_multiplier,
            )

        if isinstance(algorithm, PPOConfig):
            return collected(prompts, seed)
        rounds = algorithm.max_sampling_rounds
        return sample_in_rounds(collected, prompts, spare, max_rounds=rounds, seed=seed)

    # --- targets --------------------------------------------------------------------------------

    def _ppo_targets(
        self,
        rollouts: RolloutBatch,
        config: PPOConfig,
        sums: Sums,
        metrics: dict[str, float],
    ) -> _Targets:
        """GAE over KL-penalised rewards, whitened over the batch."""
        kept = rollouts.counts.nonzero()[:, 0].tolist()
        old = self._measure(rollouts, kept, sums, policy=True)
        mask = rollouts.mask & rollouts.counts[:, None]
        rewards = token_rewards(
            rollouts.rewards, old.logprobs, old.reference, rollouts.mask, beta=self.config.beta
        )
        advantages, returns = generalized_advantages(
            rewards * mask, old.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        known = rollouts.counts
        metrics["objective/rlhf_reward"] = float((rewards * mask).sum(1)[known].mean())
        metrics["objective/non_score_reward"] = metrics["objective/rlhf_reward"] - float(
            rollouts.rewards[known].mean()
        )
        metrics["value/mean"] = float(old.values[mask].mean())
        variance = float(returns[mask].var(correction=0))
        if variance > 0:
            residual = float((returns - old.values)[mask].var(correction=0))
            metrics["value/explained_variance"] = 1.0 - residual / variance
        return _Targets(
            kept, whiten(advantages, mask), old.logprobs, old.reference, old.values, returns
        )

    def _grpo_targets(
        self,
        rollouts: RolloutBatch,
        config: GRPOConfig,
        sums: Sums,
        metrics: dict[str, float],
    ) -> _Targets:
        """Advantages within groups; groups whose rewards agree are left out."""
        groups = group_advantages(*rollouts.by_group, scale_rewards=config.scale_rewards)
        informative = groups.informative.repeat_interleave(rollouts.num_generations)
        trained = informative & rollouts.counts
        if config.mask_truncated_completions:
            trained &= rollouts.ended
        kept = trained.nonzero()[:, 0].tolist()
        metrics["frac_reward_zero_std"] = 1.0 - float(groups.informative.float().mean())
        metrics["batch/groups_skipped"] = float((~groups.informative).sum())
        several = self.updates_per_step > 1
        old = self._measure(rollouts, kept, sums, policy=several)
        return _Targets(
            kept,
            groups.advantages.flatten()[:, None] * rollouts.mask,
            old.logprobs if several else None,
            old.reference,
        )

    def _measure(
        self, rollouts: RolloutBatch, kept: Sequence[int], sums: Sums, *, policy: bool
    ) -> _Measured:
        """Policy (if asked for), reference and value model over the completions `kept`."""
        mask, frozen = rollouts.mask, self.models.reference
        logprobs, reference, values = (torch.zeros(mask.shape) for _ in range(3))

        @torch.no_grad()
        def measure(models: Networks, part: Pass) -> Sums:
            batch = part.batch.to(self.device)
            if policy:
                seen = self._policy.forward(
                    partial(self._tokens, batch=batch, entropy=True), models.policy
                )
            if frozen is not None:
                unmoved = frozen.forward(
                    partial(self._tokens, batch=batch, entropy=False), models.reference
                )
            if models.value is not None:
                assert self._value is not None
                worth = self._value.forward(partial(self._values, batch=batch), models.value)
            if not part.counts:
                return Sums(float)
            if frozen is not None:
                scatter(reference, mask, part.indices, unmoved.logprobs)
            if models.value is not None:
                scatter(values, mask, part.indices, worth)
            if not policy:
                return Sums(float)
            scatter(logprobs, mask, part.indices, seen.logprobs)
            return described(
                rollouts,
                part,
                seen.logprobs.cpu(),
                seen.entropies.cpu(),
                self._reference_of(reference, rollouts, part),
            )

        for of_pass in self._lanes.map(measure, self._passes(rollouts, kept)):
            add(sums, of_pass)
        current().add_up(logprobs, reference, values)
        if frozen is None:
            reference = logprobs
        return _Measured(logprobs, reference, values)

    # --- updates --------------------------------------------------------------------------------

    def _update(
        self,
        step: int,
        rollouts: RolloutBatch,
        targets: _Targets,
        sums: Sums,
        metrics: dict[str, float],
    ) -> None:
        """All epochs and mini-batches over the completions that are trained on."""
        order_seed = derived_seed(self.seed, "mini-batches", step)
        update = step * self.updates_per_step
        skipped = 0
        for epoch in range(self.config.num_epochs):
            order = epoch_order(len(targets.kept), epoch, order_seed)
            for chosen in np.array_split(order, self.config.num_mini_batches):
                if len(chosen):
                    indices = [targets.kept[int(i)] for i in chosen]
                    self._mini_batch(update, rollouts, targets, indices, sums, metrics)
                else:
                    skipped += 1
                update += 1
        metrics["batch/updates_skipped"] = float(skipped)

    def _mini_batch(
        self,
        update: int,
        rollouts: RolloutBatch,
        targets: _Targets,
        indices: Sequence[int],
        sums: Sums,
        metrics: dict[str, float],
    ) -> None:
        tokens = int(rollouts.lengths[list(indices)].sum())
        whole = _MiniBatch(update, len(indices), tokens)

        def backward(models: Networks, part: Pass) -> Sums:
            sums = self._policy_pass(models.policy, whole, rollouts, targets, part)
            if models.value is not None:
                add(sums, self._value_pass(models.value, whole, rollouts, targets, part))
            return sums

        for of_pass in self._lanes.map(backward, self._passes(rollouts, indices)):
            add(sums, of_pass)
        self._lanes.gather()
        result = self._policy.step(update)
        metrics |= {"learning_rate": result.learning_rate, "grad_norm": result.grad_norm}
        if self._value is not None:
            result = self._value.step(update)
            metrics |= {
                "value/learning_rate": result.learning_rate,
                "value/grad_norm": result.grad_norm,
            }

    def _policy_pass(
        self,
        model: PreTrainedModel,
        whole: _MiniBatch,
        rollouts: RolloutBatch,
        targets: _Targets,
        part: Pass,
    ) -> Sums:
        batch, first = part.batch.to(self.device), targets.old_logprobs is None
        seen = self._policy.forward(partial(self._tokens, batch=batch, entropy=first), model)
        old = self._old_logprobs(seen.logprobs, rollouts, targets, part)
        weights = self._importance_weights(old, rollouts, part)
        loss = self._policy_loss(seen.logprobs, old, weights, whole, rollouts, targets, part)
        _check_finite(whole.update, "policy loss", loss.loss, rollouts, part)
        share = loss.loss / whole.tokens
        self._policy.backward(share if part.counts else 0.0 * share)
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
        if weights is not None and (cap := self.models.sampler.importance_ratio_cap):
            sums["mismatch/importance_weight"] = weights.sum().item()
            sums["mismatch/capped_ratio"] = (weights >= cap).sum().item()
        if targets.old_logprobs is None:
            as_sampled = described(
                rollouts,
                part,
                seen.logprobs.detach().cpu(),
                seen.entropies.cpu(),
                self._reference_of(targets.reference, rollouts, part),
            )
            add(sums, as_sampled)
        return sums

    def _old_logprobs(
        self, logprobs: Tensor, rollouts: RolloutBatch, targets: _Targets, part: Pass
    ) -> Tensor:
        if targets.old_logprobs is None:
            return logprobs.detach()
        return gather(targets.old_logprobs, rollouts.mask, part.indices).to(logprobs.device)

    def _importance_weights(self, old: Tensor, rollouts: RolloutBatch, part: Pass) -> Tensor | None:
        cap = self.models.sampler.importance_ratio_cap
        if cap is None:
            return None
        sampled = gather(rollouts.sampler_logprobs, rollouts.mask, part.indices)
        return importance_weights(old, sampled.to(old.device), cap=cap)

    def _policy_loss(
        self,
        logprobs: Tensor,
        old: Tensor,
        weights: Tensor | None,
        whole: _MiniBatch,
        rollouts: RolloutBatch,
        targets: _Targets,
        part: Pass,
    ) -> PolicyLoss:
        algorithm = self.config.algorithm

        def of(source: Tensor) -> Tensor:
            return gather(source, rollouts.mask, part.indices).to(logprobs.device)

        advantages = of(targets.advantages)
        if isinstance(algorithm, PPOConfig):
            return clipped_surrogate(
                logprobs, old, advantages, epsilon=algorithm.epsilon, weights=weights
            )
        assert targets.reference is not None
        lengths = rollouts.lengths[part.indices]
        scale = token_scale(
            algorithm,
            lengths,
            mean_length=whole.tokens / whole.completions,
            max_length=self.config.sampling.max_completion_length,
        )
        return grpo_loss(
            logprobs,
            old,
            of(targets.reference),
            advantages,
            lengths,
            algorithm,
            beta=self.config.beta,
            weights=weights,
            scale=None if scale is None else scale.to(logprobs.device),
        )

    def _value_pass(
        self,
        model: PreTrainedModel,
        whole: _MiniBatch,
        rollouts: RolloutBatch,
        targets: _Targets,
        part: Pass,
    ) -> Sums:
        algorithm = self.config.algorithm
        assert isinstance(algorithm, PPOConfig)
        assert self._value is not None
        assert targets.old_values is not None
        assert targets.returns is not None
        batch = part.batch.to(self.device)
        values = self._value.forward(partial(self._values, batch=batch), model)
        loss = clipped_value_loss(
            values,
            gather(targets.old_values, rollouts.mask, part.indices).to(values.device),
            gather(targets.returns, rollouts.mask, part.indices).to(values.device),
            epsilon=algorithm.value_epsilon,
        )
        _check_finite(whole.update, "value loss", loss.loss, rollouts, part)
        share = algorithm.value_coefficient * loss.loss / whole.tokens
        self._value.backward(share if part.counts else 0.0 * share)
        if not part.counts:
            return Sums(float)
        return Sums(
            float, {"loss/value": loss.loss.item(), "value/clip_ratio": loss.clipped.item()}
        )

    # --- small things ---------------------------------------------------------------------------

    def _tokens(self, model: PreTrainedModel, batch: TokenBatch, entropy: bool) -> PolicyTokens:
        with autocast(self.device.type, self.config.bf16):
            return policy_tokens(
                model, batch, temperature=self.config.sampling.temperature, entropy=entropy
            )

    def _values(self, model: PreTrainedModel, batch: TokenBatch) -> Tensor:
        with autocast(self.device.type, self.config.bf16):
            return values_before(model, batch)

    def _passes(self, rollouts: RolloutBatch, indices: Sequence[int]) -> list[Pass]:
        return passes(
            rollouts.token_rows,
            indices,
            tokens_per_pass=self.config.pass_tokens,
            pad_token_id=self.models.tokenizer.pad_token_id,
            lanes=len(self._lanes.models),
        )

    def _reference_of(
        self, reference: Tensor | None, rollouts: RolloutBatch, part: Pass
    ) -> Tensor | None:
        if self.models.reference is None or reference is None:
            return None
        return gather(reference, rollouts.mask, part.indices)


def _check_finite(update: int, what: str, loss: Tensor, rollouts: RolloutBatch, part: Pass) -> None:
    if math.isfinite(loss.item()):
        return
    ids = sorted({rollouts.rollouts[i].prompt.row.id for i in part.indices.tolist()})
    raise NonFiniteError(
        f"update {update}: the {what} is {loss.item()} on completions of {', '.join(ids[:8])}; "
        "lower learning_rate, or look at the rewards and the KL of the steps before"
    )
