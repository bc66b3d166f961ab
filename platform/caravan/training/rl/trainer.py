"""One step of reinforcement learning: roll out, score, update.

The policy that samples is always the policy that is trained: nothing is stale, so the ratio of the
first update is 1 up to the rounding between passes. Where another program samples, with nearly its
probabilities, tokens are weighted for the difference. All randomness of step k comes from
(seed, k); a run is resumed from weights, optimiser moments and the step number alone.

A departure from open-instruct's Tülu 3 code: sampling and training take turns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caravan.errors import StageError
from caravan.recipe import PPOConfig, RLVRConfig
from caravan.training.checkpoint import States
from caravan.training.parallel.ranks import current
from caravan.training.rl.dynamic_sampling import sample_in_rounds
from caravan.training.rl.learner import Learner, RLModels
from caravan.training.rl.metrics import Sums, add, means_of, rollout_metrics
from caravan.training.rl.rollout import RLPrompt, RolloutBatch, collect
from caravan.training.rl.scores import Scorer
from caravan.training.rl.targets import Targets, grpo_targets, ppo_targets
from caravan.training.rl.updates import Updates
from caravan.training.seeds import derived_seed
from caravan.verifiers import Verifier


@dataclass(frozen=True)
class RLStep:
    metrics: Mapping[str, float]
    rollouts: RolloutBatch
    advantages: Tensor
    """[N] mean over each completion's tokens; 0 where it was not trained on."""


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
    _learner: Learner = field(init=False)
    _score: Scorer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._learner = Learner(self.models, self.config, self.device, cpus=self.cpus)
        if self.models.reward is not None:
            self._score = Scorer(
                self.models.reward,
                tokens_per_pass=self.config.pass_tokens,
                bf16=self.config.bf16,
                pad_token_id=self.models.tokenizer.pad_token_id,
                lanes=len(self._learner.lanes.models),
            )

    def state(self) -> States:
        """What a checkpoint holds."""
        return self._learner.state()

    def policy_weights(self) -> Mapping[str, Tensor]:
        """Of the policy as it is, whole; every rank asks, and the leading one gets them."""
        return self._learner.policy.weights()

    def finish(self) -> None:
        """Make the leader's policy a plain model with its whole weights; no step follows."""
        self._learner.policy.finish()

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
        self.models.sampler.load(self._learner.policy)
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
        targets = self._targets(rollouts, sums, metrics)
        Updates(self._learner, rollouts, targets, sums, metrics).make(
            step * self._learner.updates_per_step, derived_seed(self.seed, "mini-batches", step)
        )
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

    def _targets(self, rollouts: RolloutBatch, sums: Sums, metrics: dict[str, float]) -> Targets:
        algorithm = self.config.algorithm
        if isinstance(algorithm, PPOConfig):
            return ppo_targets(self._learner, rollouts, algorithm, sums, metrics)
        return grpo_targets(self._learner, rollouts, algorithm, sums, metrics)
