"""What the stages that train, or measure log-probabilities for it, take.

The time of a training stage is its floating-point operations over what the device is assumed to
reach, or the exchange of weights between ranks where that takes longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from caravan.planning import work
from caravan.planning.devices import GIB, Placement
from caravan.planning.flow import Stream
from caravan.planning.memory import (
    HEADROOM,
    TrainingSetup,
    fitting_tokens,
    forward_setup,
    pass_tokens,
    remedies,
    rows_at_once,
    training_setup,
)
from caravan.planning.plan import StagePlan
from caravan.planning.planned import Node, PlannedRecipe
from caravan.planning.work import Rows, Work, loading_seconds
from caravan.recipe import (
    DPOConfig,
    PretrainedBase,
    RewardModelConfig,
    RLVRConfig,
    SFTConfig,
    VLLMRollouts,
)
from caravan.stages.configs import ReferenceStageConfig

TOKENIZER_SECONDS = 4.0
"""Training the tokenizer of the pocket corpus."""
DOCUMENT_SECONDS = 1.5e-4
"""Writing and tokenising one document of the pocket corpus."""


def pretrain(
    planned: PlannedRecipe, node: Node, placement: Placement, config: PretrainedBase
) -> StagePlan:
    window = config.max_position_embeddings
    per_step = max(1, config.tokens_per_step // window)
    rows = Rows(config.max_steps * per_step, window, window)
    setup = TrainingSetup(
        planned.shape, bf16=config.bf16, gpu=placement.on_gpu, lanes=placement.lanes
    )
    found = work.training(
        setup, placement, rows, steps=config.max_steps, tokens_per_pass=config.tokens_per_step
    )
    found += Work(TOKENIZER_SECONDS + config.documents * DOCUMENT_SECONDS, 0.0)
    return _trained(node, placement, setup, rows, found, config.tokens_per_step,
                    per_step, window)  # fmt: skip


def sft(planned: PlannedRecipe, node: Node, placement: Placement, config: SFTConfig) -> StagePlan:
    mix = planned.flow.mix
    per_step = min(config.sequences_per_step, mix.rows)
    drawn = per_step * config.max_steps if config.max_steps else (
        config.num_train_epochs * mix.rows
    )  # fmt: skip
    rows = _cut(drawn, mix, config.max_length)
    setup = _setup(planned, placement, config)
    steps = max(1, math.ceil(drawn / per_step))
    planned.keep_candidates(node.name, steps)
    longest = int(min(config.max_length, mix.longest))
    tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
    found = work.training(setup, placement, rows, steps=steps, tokens_per_pass=tokens)
    return _trained(node, placement, setup, rows, found, tokens, per_step, longest)


def reference(
    planned: PlannedRecipe, node: Node, placement: Placement, config: ReferenceStageConfig
) -> StagePlan:
    pairs, shape = planned.pair_count(), planned.shape
    sides = _cut(2 * pairs, planned.flow.prompts, config.max_length)
    setup = forward_setup(config, shape, gpu=placement.on_gpu, ranks=placement.ranks)
    longest = _longest_pair(planned, config.max_length)
    tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
    found = work.forward_passes(setup, placement, sides, tokens_per_pass=tokens)
    start = placement.device.start_seconds + loading_seconds(shape)
    in_pass = max(min(tokens, math.ceil(sides.count * sides.tokens / setup.ranks)), longest)
    held = setup.state_bytes() + setup.gathered_bytes()
    memory = placement.device.base_gib + held / GIB
    return StagePlan(
        node.name, node.stage, placement.device.name, placement.count, pairs,
        sides.count * sides.tokens, found.flops, start + found.seconds, memory,
        placement.memory_gib, problem=_problem(setup, placement, longest, in_pass),
    )  # fmt: skip


def on_pairs(
    planned: PlannedRecipe, node: Node, placement: Placement, config: DPOConfig | RewardModelConfig
) -> StagePlan:
    pairs = planned.pair_count()
    per_step = min(config.pairs_per_step, pairs)
    drawn = per_step * config.max_steps if config.max_steps else (
        config.num_train_epochs * pairs
    )  # fmt: skip
    sides = _cut(2 * drawn, planned.flow.prompts, config.max_length)
    setup = _setup(planned, placement, config)
    steps = max(1, math.ceil(drawn / per_step))
    planned.keep_candidates(node.name, steps)
    longest = _longest_pair(planned, config.max_length)
    tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
    found = work.training(setup, placement, sides, steps=steps, tokens_per_pass=tokens)
    plan = _trained(node, placement, setup, sides, found, tokens, 2 * per_step, longest)
    return replace(plan, rows=drawn)


def _longest_pair(planned: PlannedRecipe, max_length: int) -> int:
    """Tokens of both its sides."""
    return 2 * int(min(max_length, planned.flow.prompts.longest))


def rlvr(planned: PlannedRecipe, node: Node, placement: Placement, config: RLVRConfig) -> StagePlan:
    planned.keep_candidates(node.name, config.max_steps)
    algorithm = config.algorithm
    rollouts = config.prompts_per_step * algorithm.num_generations
    reply = planned.reply(config.sampling)
    prompt = min(planned.flow.mix.prompt_tokens, config.max_length / 2)
    ppo = algorithm.kind == "ppo"
    setup = _setup(planned, placement, config)
    tokens = pass_tokens(config.tokens_per_pass, setup, placement, config.max_length)
    policy = replace(setup, trained=1)
    reward = replace(setup.beside or setup, trained=1)  # or a value model that started from it
    rows = Rows(rollouts, prompt + reply, reply)
    updates = config.num_epochs * config.num_mini_batches
    idle = setup.state_bytes() / GIB + placement.device.base_gib
    sampled = _sampled(setup, placement, config, idle, prompt, reply)
    batch = sampled.work
    scored = config.reward_model_multiplier > 0
    for model in (
        (updates > 1) * [policy] + (config.beta > 0) * [policy] + (scored + ppo) * [reward]
    ):
        batch += work.forward_passes(model, placement, rows, tokens_per_pass=tokens)
    again = replace(rows, count=rollouts * config.num_epochs)
    for model in [policy] + ppo * [reward]:
        batch += work.training(model, placement, again, steps=updates, tokens_per_pass=tokens)
    found = Work(batch.seconds * config.max_steps, batch.flops * config.max_steps)
    all_rows = replace(rows, count=rollouts * config.max_steps)
    plan = _trained(node, placement, setup, all_rows, found, tokens,
                    rollouts / config.num_mini_batches, config.max_length)  # fmt: skip
    memory = max(plan.memory_gib, idle + sampled.gib)
    problem = plan.problem or sampled.problem
    if not problem and memory > placement.memory_gib * HEADROOM:
        problem = (
            f"{sampled.holds} {sampled.gib:.1f} GiB, {memory:.1f} GiB in all of "
            f"{placement.memory_gib:.0f}; lower {sampled.lower}"
        )
    return replace(plan, memory_gib=memory, problem=problem)


@dataclass(frozen=True)
class _Sampled:
    """What the rollouts of one step take."""

    work: Work
    gib: float
    """On each device, beside the training."""
    holds: str
    """What that is for, as the beginning of a sentence."""
    lower: str
    """What takes less of it."""
    problem: str = ""


def _sampled(
    setup: TrainingSetup,
    placement: Placement,
    config: RLVRConfig,
    idle: float,
    prompt: float,
    reply: float,
) -> _Sampled:
    """
    Args:
        idle: GiB that training holds on each device between passes.
        prompt, reply: in tokens.
    """
    n, rollouts = config.algorithm.num_generations, config.rollouts
    size, shape = 1, setup.shape
    length = prompt + config.sampling.max_completion_length
    if isinstance(rollouts, VLLMRollouts):
        size = rollouts.tensor_parallel_size
    # Prompts are shared out whole: samplers beyond their number have nothing to do.
    rows = math.ceil(config.prompts_per_step / max(1, setup.ranks // size)) * n

    def work_of(at_once: int) -> Work:
        one = placement.for_one_process()
        found = work.decoding(
            shape, replace(one, count=one.count * size), rows=rows, prompt_tokens=prompt,
            reply_tokens=reply, longest_reply=config.sampling.max_completion_length,
            batch_size=at_once, continuous=isinstance(rollouts, VLLMRollouts),
        )  # fmt: skip
        return Work(found.seconds, found.flops * config.prompts_per_step * n / rows)

    if isinstance(rollouts, VLLMRollouts):
        share = rollouts.gpu_memory_utilization * placement.memory_gib
        weights = (2 if placement.on_gpu else 4) * shape.parameters / GIB
        at_once, _ = rows_at_once(
            min(rows, work.VLLM_ROWS), shape, replace(placement, memory_gib=share * size), weights,
            length, bf16=placement.on_gpu,
        )  # fmt: skip
        problem = ""
        if weights / size > share * HEADROOM:
            problem = (
                f"the weights of vLLM take {weights / size:.1f} GiB of the {share:.1f} that are "
                "its share; raise rollouts.tensor_parallel_size or gpu_memory_utilization"
            )
        return _Sampled(
            work_of(at_once), share, "vLLM takes", "rollouts.gpu_memory_utilization", problem
        )
    at_once, cache = rows_at_once(rows, shape, placement, idle, length, bf16=setup.samples_in_bf16)
    return _Sampled(
        work_of(at_once),
        cache,
        f"keys and values of {at_once:,} replies take",
        "prompts_per_step, num_generations or max_completion_length",
    )


def _setup(
    planned: PlannedRecipe,
    placement: Placement,
    config: SFTConfig | DPOConfig | RewardModelConfig | RLVRConfig,
) -> TrainingSetup:
    reads_reward_model = isinstance(config, RLVRConfig) and config.reads_reward_model
    return training_setup(
        config,
        planned.shape,
        gpu=placement.on_gpu,
        ranks=placement.ranks,
        lanes=placement.lanes,
        reward_model=planned.reward_model if reads_reward_model else None,
    )


def _trained(
    node: Node,
    placement: Placement,
    setup: TrainingSetup,
    rows: Rows,
    found: Work,
    tokens_per_pass: int,
    rows_per_step: float,
    longest: int,
) -> StagePlan:
    """
    Args:
        longest: tokens that one pass cannot go below.
    """
    step_tokens = math.ceil(rows_per_step * rows.tokens / setup.ranks / setup.lanes)
    in_pass = max(min(tokens_per_pass, step_tokens), longest)
    memory = setup.gib(in_pass) + placement.device.base_gib
    fitting = fitting_tokens(setup, placement, longest)
    seconds = found.seconds + placement.device.start_seconds + loading_seconds(setup.shape)
    return StagePlan(
        node.name, node.stage, placement.device.name, placement.count, rows.count,
        rows.count * rows.tokens, found.flops, seconds, memory, placement.memory_gib,
        tokens_per_pass,
        work.passes_per_step(rows, rows_per_step, setup, tokens_per_pass),
        fitting, _problem(setup, placement, longest, in_pass),
    )  # fmt: skip


def _cut(count: float, stream: Stream, max_length: int) -> Rows:
    """`count` rows of a stream, of which what is longer than `max_length` is cut off."""
    share = min(1.0, max_length / stream.tokens)
    return Rows(count, stream.tokens * share, stream.reply_tokens * share)


def _problem(setup: TrainingSetup, placement: Placement, longest: int, in_pass: int) -> str:
    """Why passes of `in_pass` tokens do not fit, and what to do; empty where they do.

    Args:
        longest: tokens that one pass cannot go below.
    """
    fitting = fitting_tokens(setup, placement, longest)
    if fitting is not None and in_pass <= fitting:
        return ""
    tokens = longest if fitting is None else in_pass
    needed = f"{setup.gib(tokens) + placement.device.base_gib:.1f} GiB of {placement.memory_gib:g}"
    if fitting is None:
        return (
            f"one row of {longest:,} tokens needs {needed}; {remedies(setup, placement, longest)}"
        )
    return f"a pass of {in_pass:,} tokens needs {needed}; set tokens_per_pass: {fitting}"
