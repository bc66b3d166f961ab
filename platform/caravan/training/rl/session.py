"""One run of RLVR: prompts, models, every step with its checkpoints, and the rollouts it keeps."""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.data.io import ROWS, read_rows, write_rows
from caravan.data.records import Conversation, RolloutGroup
from caravan.garbage import collect_as_usual
from caravan.inference.engine import EngineError, positions_of
from caravan.interruption import StageStopped, hold_stops
from caravan.recipe import PPOConfig, RLVRConfig, VLLMRollouts
from caravan.stages.configs import RLVRStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.so_far import write_so_far
from caravan.stages.trained import save_trained
from caravan.training.adapters import Unadapted, add_adapters, load_base
from caravan.training.batching import StepSampler, epoch_order
from caravan.training.candidates import Candidates
from caravan.training.checkpoint import Checkpoints
from caravan.training.dropout import without_dropout
from caravan.training.fit import identity
from caravan.training.frozen import Frozen, freeze
from caravan.training.models import (
    check_reads_tokens_of,
    load_policy,
    load_reward_model,
    new_reward_model,
    place,
    prepare_torch,
)
from caravan.training.parallel.ranks import current, reads_weights, spreads_weights
from caravan.training.rl.guard import CollapseGuard
from caravan.training.rl.learner import RLModels
from caravan.training.rl.prompts import RLPrompts, select_prompts
from caravan.training.rl.rollout import RLPrompt, Rollout
from caravan.training.rl.samplers import ModelSampler, Sampler
from caravan.training.rl.trainer import RLStep, RLTrainer
from caravan.training.seeds import derived_seed
from caravan.verifiers import Verifier

STEPS_KEPT = 25
"""Steps whose rollouts are kept, evenly over the run, the first and the last among them."""
PROMPTS_KEPT = 8
"""Prompts of each of those steps."""
logger = logging.getLogger(__name__)


def train_rlvr(
    config: RLVRStageConfig,
    inputs: Mapping[str, Path],
    context: StageContext,
    verifiers: Mapping[str, Verifier],
) -> StageResult:
    """On every rank."""
    device, ranks = prepare_torch(config.resources.cpus, context.seed), current()
    weights = reads_weights(config.zero_stage)
    reference: Frozen | None = None
    if config.beta > 0 and config.lora is None:
        # Before the policy: a host need not hold both whole.
        reference = _only_read(load_policy(inputs["policy"], weights=weights).model, config, device)
    copied = _samples_from_a_copy(config, device)
    policy, tokenizer = load_base(inputs["policy"], config, device, halve=copied)
    collect_as_usual()
    ppo, scores = isinstance(config.algorithm, PPOConfig), config.reward_model_multiplier > 0
    value = _value_model(inputs, tokenizer, weights=weights) if ppo else None
    reward = _reward_model(inputs["reward_model"], tokenizer, weights=weights) if scores else None
    models = [model for model in (policy, value, reward) if model is not None]
    positions = min(positions_of(model.config) for model in models)
    rows = read_rows(inputs["dataset"], Conversation)
    prompts = select_prompts(rows, tokenizer, config, verifiers, positions=positions)
    policy = _trained(policy, config, device)
    if config.beta > 0 and config.lora is not None:
        reference = Unadapted(policy)
    if value is not None:
        add_adapters(value, config, device)
    sampler = _sampler(policy, tokenizer, config, device, context.workdir)
    trainer = RLTrainer(
        RLModels(
            policy=policy,
            tokenizer=tokenizer,
            sampler=sampler,
            reference=reference,
            value=None if value is None else _trained(value, config, device),
            reward=None if reward is None else _only_read(reward, config, device),
        ),
        config,
        verifiers,
        context.seed,
        device,
        cpus=config.resources.cpus,
    )
    write = partial(save_trained, policy, tokenizer, config, inputs["policy"])
    candidates = Candidates(context, config.keep_every, config.max_steps, write)
    with closing(sampler):
        metrics, rollouts = _train(trainer, prompts, config, inputs["policy"], context, candidates)
    candidates.publish()
    if ranks.leads:
        write_rows(context.output("rollouts", "report") / ROWS, rollouts)
    return StageResult(
        {"prompts": len(prompts.rows), "prompts_too_long": prompts.too_long, **metrics}
    )


def _train(
    trainer: RLTrainer,
    prompts: RLPrompts,
    config: RLVRConfig,
    policy_dir: Path,
    context: StageContext,
    candidates: Candidates,
) -> tuple[dict[str, float], list[RolloutGroup]]:
    """All steps that are not done yet; gives the metrics of the last one, and rollouts of many.

    Those of earlier steps come from the checkpoint: the run may have begun on another machine.
    """
    total = config.max_steps
    per_step = config.prompts_per_step
    sampler = StepSampler(len(prompts.rows), per_step, per_step * total, context.seed)
    ranks = current()
    state = trainer.state()
    remote = getattr(context, "remote_checkpoints", None)
    checkpoints = Checkpoints(
        context.workdir,
        fingerprint=identity("rlvr", config, context.seed, policy_dir, prompts.rows),
        remote=remote,
        before_copy=candidates.copy,
    )
    with hold_stops() as stop, checkpoints:  # asked to stop, it ends a step and saves
        resumed = checkpoints.restore(state)
        done = resumed.step if resumed else 0
        if ranks.leads:
            candidates.restore(done)
        if resumed:
            logger.info("goes on at step %d of %d", done, total)
        guard = CollapseGuard(**resumed.extra["guard"]) if resumed else CollapseGuard()
        last: dict[str, float] = resumed.extra["last"] if resumed else {}
        kept = resumed.extra["rollouts"] if resumed else []
        rollouts = [RolloutGroup.model_validate(group) for group in kept]
        context.progress(done, total)
        for step in range(done, total):
            try:
                chosen = sampler.step(step)
                spare = _spare(prompts, chosen, step, trainer)
                result = trainer.step(step, [prompts.rows[i] for i in chosen], spare)
            except EngineError:
                if stop.asked:  # a signal to all processes of a terminal has ended vLLM, too
                    raise StageStopped(stop.signal_number or signal.SIGTERM) from None
                raise
            guard.watch(result.metrics)
            metrics = {
                **result.metrics,
                "episodes": last.get("episodes", 0.0) + len(result.rollouts.rollouts),
                "policy/collapsed": float(guard.reason is not None),
            }
            context.log(step + 1, metrics)
            latest = _some_rollouts(step, result)
            if ranks.leads:
                write_so_far(context.workdir, [*rollouts, *latest], remote)
            if _is_kept(step, total):
                rollouts += latest
            last = {k: v for k, v in metrics.items() if not k.startswith("perf/")}
            if candidates.due(step + 1):
                candidates.save(step + 1, trainer.policy_weights())
            stopping = ranks.any(stop.asked)
            if (step + 1) % config.save_steps == 0 or step + 1 == total or stopping:
                kept = [group.model_dump(mode="json") for group in rollouts]
                extra = {"guard": guard.state(), "last": last, "rollouts": kept}
                checkpoints.save(step + 1, state, extra)
            context.progress(step + 1, total)
            if stopping and step + 1 < total:
                checkpoints.wait()
                ranks.wait()  # none ends before the leading one has written
                raise StageStopped(stop.signal_number or signal.SIGTERM)
        trainer.finish()
    return {**last, "policy/collapsed_steps": guard.collapsed_steps}, rollouts


def _spare(
    prompts: RLPrompts, chosen: Sequence[int], step: int, trainer: RLTrainer
) -> list[RLPrompt]:
    """All prompts that are not in the step, in an order of its own."""
    algorithm = trainer.config.algorithm
    if isinstance(algorithm, PPOConfig) or algorithm.max_sampling_rounds == 1:
        return []
    order = epoch_order(len(prompts.rows), step, derived_seed(trainer.seed, "spare prompts", step))
    taken = set(chosen)
    return [prompts.rows[i] for i in order if i not in taken]


def _value_model(
    inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase, *, weights: bool
) -> PreTrainedModel:
    if "reward_model" in inputs:
        return _reward_model(inputs["reward_model"], tokenizer, weights=weights)
    logger.warning("no reward model: the value model starts from the policy, with a new head")
    return new_reward_model(inputs["policy"], weights=weights).model


def _reward_model(
    directory: Path, tokenizer: PreTrainedTokenizerBase, *, weights: bool
) -> PreTrainedModel:
    """Of the policy whose tokenizer is given."""
    model, own = load_reward_model(directory, weights=weights)
    check_reads_tokens_of(tokenizer, own, directory)
    return model


def _trained(model: PreTrainedModel, config: RLVRConfig, device: torch.device) -> PreTrainedModel:
    """On `device`; without dropout, so that sampling and training agree on probabilities."""
    without_dropout(model)
    placed = place(
        model,
        device,
        gradient_checkpointing=config.gradient_checkpointing,
        zero_stage=config.zero_stage,
    )
    return placed if config.gradient_checkpointing else placed.eval()


def _only_read(model: PreTrainedModel, config: RLVRConfig, device: torch.device) -> Frozen:
    placed = place(model, device, gradient_checkpointing=False, zero_stage=config.zero_stage)
    return freeze(placed, zero_stage=config.zero_stage, zero_offload=config.zero_offload)


def _sampler(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RLVRConfig,
    device: torch.device,
    workdir: Path,
) -> Sampler:
    if isinstance(config.rollouts, VLLMRollouts):
        # Loaded only here: it needs vLLM.
        from caravan.training.rl.vllm_sampler import VLLMSampler

        length = min(config.max_length, positions_of(policy.config))
        return VLLMSampler(config.rollouts, tokenizer, length, workdir)
    copied = _samples_from_a_copy(config, device)
    model = _whole_copy(policy, config, device) if copied else policy
    return ModelSampler(model, tokenizer)


def _samples_from_a_copy(config: RLVRConfig, device: torch.device) -> bool:
    """Where the policy's weights are spread over the ranks, or a GPU decodes several times faster
    in bfloat16."""
    return spreads_weights(config.zero_stage) or _halves(config, device)


def _halves(config: RLVRConfig, device: torch.device) -> bool:
    """Whether whole copies are in bfloat16: on a GPU, where they take half for it."""
    return config.bf16 and device.type == "cuda"


def _whole_copy(
    policy: PreTrainedModel, config: RLVRConfig, device: torch.device
) -> PreTrainedModel:
    """A copy on `device` whose weights are still to be written."""
    dtype = torch.bfloat16 if _halves(config, device) else torch.float32
    unwritten: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device=device, dtype=dtype), requires_grad=False)
        for p in policy.parameters()
    }
    whole: Any = copy.deepcopy(policy, unwritten)
    return cast(PreTrainedModel, whole.to(device).eval())


def _is_kept(step: int, total: int) -> bool:
    if total <= STEPS_KEPT or step in (0, total - 1):
        return True
    return step * (STEPS_KEPT - 1) // (total - 1) != (step - 1) * (STEPS_KEPT - 1) // (total - 1)


def _some_rollouts(step: int, result: RLStep) -> list[RolloutGroup]:
    n = result.rollouts.num_generations
    rollouts = result.rollouts.rollouts[: PROMPTS_KEPT * n]
    advantages = result.advantages.tolist()
    groups = []
    for start in range(0, len(rollouts), n):
        group = rollouts[start : start + n]
        row = group[0].prompt.row
        groups.append(
            RolloutGroup(
                step=step + 1,
                prompt_id=row.id,
                prompt=row.prompt,
                skill=row.skill,
                verifier=row.verifier or "",
                ground_truth=row.ground_truth,
                completions=tuple(r.text for r in group),
                finish_reasons=tuple(r.sequence.finish_reason for r in group),
                outcomes=tuple(r.outcome.value for r in group),
                rewards=tuple(r.reward for r in group),
                advantages=tuple(advantages[start : start + n]),
                scores=_scores(group),
            )
        )
    return groups


def _scores(group: Sequence[Rollout]) -> tuple[float, ...] | None:
    """None where the reward model was not asked."""
    scores = [rollout.score for rollout in group if rollout.score is not None]
    return tuple(scores) or None
