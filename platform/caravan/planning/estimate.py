"""What each stage of a recipe takes: memory, seconds, device-hours. Nothing is run.

    plan = plan_recipe(recipe, stage_graph(recipe), recipe_dir)

The time of a training stage is its floating-point operations over what the device is assumed to
reach, or the exchange of weights between ranks where that takes longer; decoding is bound by
memory or by operations, whichever is slower. The assumptions are in `devices`, `flow` and here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from caravan.errors import CaravanError
from caravan.planning import work
from caravan.planning.devices import GIB, Placement, gpu_named, place
from caravan.planning.flow import Flow, Stream, flow_of
from caravan.planning.memory import (
    HEADROOM,
    TrainingSetup,
    fitting_tokens,
    forward_setup,
    pass_tokens,
    remedies,
    training_setup,
)
from caravan.planning.plan import Plan, StagePlan
from caravan.planning.shapes import ModelShape, pretrained_shape, shape_of_model
from caravan.planning.work import Rows, Work
from caravan.recipe import (
    DPOConfig,
    ImportedBase,
    LLMJudge,
    OpenAIEngineConfig,
    PretrainedBase,
    ProgramEngineConfig,
    Recipe,
    RewardModelConfig,
    RLVRConfig,
    Sampling,
    SFTConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.stages.configs import (
    EvaluateStageConfig,
    JudgeStageConfig,
    ReferenceStageConfig,
    RespondStageConfig,
    SynthesizeStageConfig,
)

ROW_SECONDS = {
    "curate": 1.1e-4, "synthesize": 2e-4, "decontaminate": 9e-5, "mix": 2e-5,
    "sample_prompts": 2e-5, "respond": 2e-5, "judge": 1.5e-4, "pair": 5e-5, "report": 5e-4,
}  # fmt: skip
"""Of one row in stages that ask no model, on one core; measured with the pocket recipe."""
NEAR_DUPLICATE_SECONDS = 1.5e-3
"""Of one row more, where near duplicates are searched."""
TOKENIZER_SECONDS = 4.0
"""Training the tokenizer of the pocket corpus."""
DOCUMENT_SECONDS = 1.5e-4
"""Writing and tokenising one document of the pocket corpus."""
HOSTED_TOKENS_PER_SECOND = 60.0
"""Of one request to a hosted model."""
RATING_TOKENS = 60
"""A judge's words about one completion."""
VLLM_ROWS = 256
"""Sequences that vLLM decodes at once on one device."""
BASE_REPLIES = 2.0
"""Length of a base model's replies, as a multiple of those of the mix."""
FREE_GIB = 0.1
"""Working memory of stages that ask no model."""


class Node(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def config(self) -> Any: ...


def plan_recipe(
    recipe: Recipe, nodes: Iterable[Node], recipe_dir: Path, *, gpu: str | None = None
) -> Plan:
    """Estimate every node of a recipe.

    Args:
        nodes: what `stage_graph(recipe)` gives.
        gpu: the type of GPU where `resources.gpu_type` names none.

    Raises:
        CaravanError: a model's size or a device is not known; says which.
    """
    return _Planner(recipe, recipe_dir, gpu).plan(nodes)


@dataclass
class _Planner:
    recipe: Recipe
    recipe_dir: Path
    gpu: str | None

    def __post_init__(self) -> None:
        if self.gpu is not None:
            gpu_named(self.gpu)  # also where no stage has a GPU, or each names its own
        self.notes: list[str] = []

    @cached_property
    def flow(self) -> Flow:
        return flow_of(self.recipe, self.recipe_dir)

    @cached_property
    def base(self) -> tuple[ModelShape, str]:
        base = self.recipe.base_model
        if isinstance(base, PretrainedBase):
            return pretrained_shape(base), "the recipe"
        return shape_of_model(base.model_name_or_path, self.recipe_dir)

    def plan(self, nodes: Iterable[Node]) -> Plan:
        shape, known_by = self.base
        stages = tuple(self.stage(node) for node in nodes)
        notes = (*self.flow.notes, *self.notes)
        return Plan(self.recipe.name, shape.parameters, known_by, stages, notes)

    def stage(self, node: Node) -> StagePlan:
        config = node.config
        placement = place(config.resources, self.gpu)
        match config:
            case PretrainedBase():
                return self._pretrain(node, placement, config)
            case ImportedBase():
                return self._import(node, placement)
            case SFTConfig():
                return self._sft(node, placement, config)
            case ReferenceStageConfig():
                return self._reference(node, placement, config)
            case DPOConfig():
                return self._pairs(node, placement, config)
            case RewardModelConfig():
                if config.model_name_or_path is not None:
                    return self._import(node, placement)
                return self._pairs(node, placement, config)
            case RLVRConfig():
                return self._rlvr(node, placement, config)
            case RespondStageConfig():
                return self._respond(node, placement, config)
            case JudgeStageConfig():
                return self._judge(node, placement, config)
            case SynthesizeStageConfig():
                return self._synthesize(node, placement, config)
            case EvaluateStageConfig():
                return self._evaluate(node, placement, config)
        return self._rows(node, placement)

    # --- training ---------------------------------------------------------------------------

    def _pretrain(self, node: Node, placement: Placement, config: PretrainedBase) -> StagePlan:
        window = config.max_position_embeddings
        per_step = max(1, config.tokens_per_step // window)
        rows = Rows(config.max_steps * per_step, window, window)
        setup = TrainingSetup(
            self.base[0], bf16=config.bf16, gpu=placement.on_gpu, lanes=placement.lanes
        )
        found = work.training(
            setup, placement, rows, steps=config.max_steps, tokens_per_pass=config.tokens_per_step
        )
        found += Work(TOKENIZER_SECONDS + config.documents * DOCUMENT_SECONDS, 0.0)
        return self._trained(node, placement, setup, rows, found, config.tokens_per_step,
                             per_step, window)  # fmt: skip

    def _sft(self, node: Node, placement: Placement, config: SFTConfig) -> StagePlan:
        mix = self.flow.mix
        per_step = min(config.sequences_per_step, mix.rows)
        drawn = per_step * config.max_steps if config.max_steps else (
            config.num_train_epochs * mix.rows
        )  # fmt: skip
        rows = _cut(drawn, mix, config.max_length)
        setup = self._setup(placement, config)
        steps = max(1, math.ceil(drawn / per_step))
        longest = int(min(config.max_length, mix.longest))
        tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
        found = work.training(setup, placement, rows, steps=steps, tokens_per_pass=tokens)
        return self._trained(node, placement, setup, rows, found, tokens, per_step, longest)

    def _reference(
        self, node: Node, placement: Placement, config: ReferenceStageConfig
    ) -> StagePlan:
        pairs, shape = self._pair_count(), self.base[0]
        sides = _cut(2 * pairs, self.flow.prompts, config.max_length)
        setup = forward_setup(shape, gpu=placement.on_gpu, bf16=config.bf16)
        longest = self._longest_pair(config.max_length)
        tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
        found = work.forward_passes(setup, placement, sides, tokens_per_pass=tokens)
        start = placement.device.start_seconds + _loading(shape, placement)
        memory = placement.device.base_gib + 4 * shape.parameters / GIB
        in_pass = max(min(tokens, math.ceil(sides.count * sides.tokens)), longest)
        return StagePlan(
            node.name, node.stage, placement.device.name, placement.count, pairs,
            sides.count * sides.tokens, found.flops, start + found.seconds, memory,
            placement.memory_gib, problem=_problem(setup, placement, longest, in_pass),
        )  # fmt: skip

    def _pairs(
        self, node: Node, placement: Placement, config: DPOConfig | RewardModelConfig
    ) -> StagePlan:
        pairs = self._pair_count()
        per_step = min(config.pairs_per_step, pairs)
        drawn = per_step * config.max_steps if config.max_steps else (
            config.num_train_epochs * pairs
        )  # fmt: skip
        sides = _cut(2 * drawn, self.flow.prompts, config.max_length)
        setup = self._setup(placement, config)
        steps = max(1, math.ceil(drawn / per_step))
        longest = self._longest_pair(config.max_length)
        tokens = pass_tokens(config.tokens_per_pass, setup, placement, longest)
        found = work.training(setup, placement, sides, steps=steps, tokens_per_pass=tokens)
        plan = self._trained(node, placement, setup, sides, found, tokens, 2 * per_step, longest)
        return replace(plan, rows=drawn)

    def _longest_pair(self, max_length: int) -> int:
        """Tokens of both its sides."""
        return 2 * int(min(max_length, self.flow.prompts.longest))

    def _rlvr(self, node: Node, asked: Placement, config: RLVRConfig) -> StagePlan:
        placement = asked.for_one_process()
        algorithm = config.algorithm
        rollouts = config.prompts_per_step * algorithm.num_generations
        reply = self._reply(config.sampling)
        prompt = min(self.flow.mix.prompt_tokens, config.max_length / 2)
        ppo = algorithm.kind == "ppo"
        setup = self._setup(placement, config)
        tokens = pass_tokens(config.tokens_per_pass, setup, placement, config.max_length)
        one = replace(setup, trained=1)
        rows = Rows(rollouts, prompt + reply, reply)
        updates = config.num_epochs * config.num_mini_batches
        batch = work.decoding(
            setup.shape, placement, rows=rollouts, prompt_tokens=prompt, reply_tokens=reply,
            longest_reply=config.sampling.max_completion_length, batch_size=rollouts,
            continuous=False,
        )  # fmt: skip
        measured = (updates > 1) + (config.beta > 0) + ppo
        forward = work.forward_passes(one, placement, rows, tokens_per_pass=tokens)
        trained = work.training(
            one, placement, replace(rows, count=rollouts * config.num_epochs), steps=updates,
            tokens_per_pass=tokens,
        )  # fmt: skip
        for _ in range(measured):
            batch += forward
        for _ in range(setup.trained):
            batch += trained
        found = Work(batch.seconds * config.max_steps, batch.flops * config.max_steps)
        all_rows = replace(rows, count=rollouts * config.max_steps)
        plan = self._trained(node, placement, setup, all_rows, found, tokens,
                             rollouts / config.num_mini_batches, config.max_length)  # fmt: skip
        cache = rollouts * (prompt + config.sampling.max_completion_length)
        width = 1 if placement.on_gpu else 2  # keys and values in float32
        held = width * cache * setup.shape.kv_bytes_per_token / GIB
        passing = setup.gib(tokens) - setup.gib(0)
        memory = plan.memory_gib + max(0.0, held - passing)
        problem, gpu = plan.problem, placement.on_gpu
        if not problem and memory > placement.memory_gib * HEADROOM:
            problem = (
                f"keys and values of {rollouts:,} replies take {held:.1f} GiB, "
                f"{memory:.1f} GiB in all of {placement.memory_gib:.0f}; lower "
                "prompts_per_step, num_generations or max_completion_length"
            )
        where = "on one GPU" if gpu else "on one node"
        if problem:
            problem = f"{node.name} trains in one process {where}; {problem}"
        elif asked.count > placement.count:
            self.notes.append(
                f"{node.name} trains in one process {where}; the others of its "
                f"{asked.count if gpu else asked.nodes} would be idle"
            )
        return replace(
            plan,
            devices=asked.count,  # which it holds, of use or not
            memory_gib=memory,
            problem=problem,
        )

    def _setup(
        self, placement: Placement, config: SFTConfig | DPOConfig | RewardModelConfig | RLVRConfig
    ) -> TrainingSetup:
        return training_setup(
            config,
            self.base[0],
            gpu=placement.on_gpu,
            ranks=placement.ranks,
            lanes=placement.lanes,
        )

    def _trained(
        self,
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
        seconds = found.seconds + placement.device.start_seconds + _loading(setup.shape, placement)
        return StagePlan(
            node.name, node.stage, placement.device.name, placement.count, rows.count,
            rows.count * rows.tokens, found.flops, seconds, memory, placement.memory_gib,
            tokens_per_pass,
            work.passes_per_step(rows, rows_per_step, setup, tokens_per_pass),
            fitting, _problem(setup, placement, longest, in_pass),
        )  # fmt: skip

    # --- stages that ask models -------------------------------------------------------------

    def _respond(self, node: Node, placement: Placement, config: RespondStageConfig) -> StagePlan:
        prompts = self.flow.prompts
        share = 1.0
        if config.drawn_from and config.member.artifact is None:
            share = config.drawn / len(config.drawn_from)
        rows = prompts.rows * share * config.member.num_generations
        asked = replace(prompts, rows=rows)
        reply = self._reply(config.sampling, base=config.member.artifact == "base")
        if config.engine is None:
            engine: object = TransformersEngineConfig(model_name_or_path="", batch_size=64)
            return self._asked(node, placement, engine, asked, reply, config.sampling,
                               shape=self.base[0])  # fmt: skip
        return self._asked(node, placement, config.engine, asked, reply, config.sampling)

    def _judge(self, node: Node, placement: Placement, config: JudgeStageConfig) -> StagePlan:
        recipe, prompts = self.recipe, self.flow.prompts
        assert recipe.respond is not None
        respond = recipe.respond
        replies = respond.models_per_prompt or sum(m.num_generations for m in respond.pool)
        if config.engine is None or not isinstance(config.judge.judge, LLMJudge):
            return self._rows(node, placement, prompts.rows * replies)
        requests = prompts.rows * len(config.judge.aspects)
        length = prompts.prompt_tokens + replies * prompts.reply_tokens
        written = RATING_TOKENS * replies
        asked = Stream(requests, length, written)
        return self._asked(node, placement, config.engine, asked, written,
                           config.judge.judge.sampling)  # fmt: skip

    def _synthesize(
        self, node: Node, placement: Placement, config: SynthesizeStageConfig
    ) -> StagePlan:
        plans = []
        for task in config.synthesize.tasks:
            stream = self.flow.sources[task.name]
            sampling = task.sampling or config.synthesize.sampling
            for name, written in (
                (task.prompt_engine, stream.prompt_tokens),
                (task.response_engine, stream.reply_tokens),
            ):
                plans.append(
                    self._asked(node, placement, config.engines[name], stream, written, sampling)
                )
        start = min(plan.seconds for plan in plans)  # the stage starts once
        start = min(start, placement.device.start_seconds)
        seconds = start + sum(plan.seconds - start for plan in plans)
        rows = sum(task.count for task in config.synthesize.tasks)
        return replace(
            plans[0], seconds=seconds, rows=rows, tokens=sum(plan.tokens for plan in plans),
            flops=sum(plan.flops for plan in plans),
            memory_gib=max(plan.memory_gib for plan in plans),
        )  # fmt: skip

    def _evaluate(self, node: Node, placement: Placement, config: EvaluateStageConfig) -> StagePlan:
        suite = config.evaluate
        engine: object = TransformersEngineConfig(
            model_name_or_path="", batch_size=suite.batch_size
        )
        if suite.engine == "vllm":
            engine = VLLMEngineConfig(model_name_or_path="")
        plans = []
        for task in suite.tasks:
            rows = self.flow.instances[task.name] * task.num_generations
            shots = 1 + task.num_fewshot
            asked = Stream(rows, self.flow.mix.prompt_tokens * shots)
            reply = self._reply(task.sampling, base=node.name.endswith("-base"))
            plans.append(self._asked(node, placement, engine, asked, reply, task.sampling,
                                     shape=self.base[0]))  # fmt: skip
        start = placement.device.start_seconds + _loading(self.base[0], placement)
        return replace(
            plans[0], seconds=start + sum(plan.seconds - start for plan in plans),
            rows=sum(plan.rows for plan in plans), tokens=sum(plan.tokens for plan in plans),
            flops=sum(plan.flops for plan in plans),
            memory_gib=max(plan.memory_gib for plan in plans),
        )  # fmt: skip

    def _asked(
        self,
        node: Node,
        placement: Placement,
        engine: object,
        asked: Stream,
        reply: float,
        sampling: Sampling,
        *,
        shape: ModelShape | None = None,
    ) -> StagePlan:
        """A stage in which a model writes `reply` tokens to each of the rows `asked`."""
        start = placement.device.start_seconds
        tokens = asked.rows * (asked.prompt_tokens + reply)
        memory = placement.device.base_gib
        problem = ""
        if isinstance(engine, ProgramEngineConfig):
            return self._rows(node, placement, asked.rows)
        if isinstance(engine, OpenAIEngineConfig):
            each = 1.0 + reply / HOSTED_TOKENS_PER_SECOND
            found = Work(asked.rows * each / engine.concurrency, 0.0)
        else:
            assert isinstance(engine, TransformersEngineConfig | VLLMEngineConfig)
            if shape is None:
                shape = self._engine_shape(engine.model_name_or_path)
            vllm = isinstance(engine, VLLMEngineConfig)
            batch = (
                engine.batch_size
                if isinstance(engine, TransformersEngineConfig)
                else (VLLM_ROWS * max(1, placement.count // engine.tensor_parallel_size))
            )
            gpu = placement.on_gpu
            held = (2 if gpu else 4) * shape.parameters / GIB
            if isinstance(engine, VLLMEngineConfig):
                held /= engine.tensor_parallel_size
            width = 1 if gpu else 2
            cache = width * batch * (asked.prompt_tokens + sampling.max_completion_length)
            memory += held + (0.0 if vllm else cache * shape.kv_bytes_per_token / GIB)
            if isinstance(engine, VLLMEngineConfig):  # what vLLM finds free it takes for its cache
                memory = max(memory, engine.gpu_memory_utilization * placement.memory_gib)
            if held > placement.memory_gib * 0.9:
                problem = (
                    f"the weights alone are {held:.1f} GiB of {placement.memory_gib:g}; "
                    "raise tensor_parallel_size and gpus"
                )
            found = work.decoding(
                shape, placement, rows=asked.rows, prompt_tokens=asked.prompt_tokens,
                reply_tokens=reply, longest_reply=sampling.max_completion_length,
                batch_size=batch, continuous=vllm,
            )  # fmt: skip
            start += _loading(shape, placement)
        return StagePlan(
            node.name, node.stage, placement.device.name, placement.count, asked.rows, tokens,
            found.flops, start + found.seconds, memory, placement.memory_gib, problem=problem,
        )  # fmt: skip

    def _engine_shape(self, name: str) -> ModelShape:
        try:
            return shape_of_model(name, self.recipe_dir)[0]
        except CaravanError as error:
            self.notes.append(f"{error}; taken to be of the base model's size")
            return self.base[0]

    def _reply(self, sampling: Sampling, *, base: bool = False) -> float:
        """Mean tokens of a reply: as in the mix; a base model does not know when to end."""
        written = self.flow.mix.reply_tokens * (BASE_REPLIES if base else 1)
        return min(sampling.max_completion_length, written)

    # --- the others -------------------------------------------------------------------------

    def _rows(self, node: Node, placement: Placement, rows: float | None = None) -> StagePlan:
        """A stage that goes through rows and asks no model."""
        if rows is None:
            rows = self._row_count(node.stage)
        each = ROW_SECONDS.get(node.stage, 1e-4)
        near = self.recipe.curate.near_duplicate_threshold is not None
        if node.stage == "curate" and near:
            each += NEAR_DUPLICATE_SECONDS
        return StagePlan(
            node.name, node.stage, placement.device.name, placement.count, rows, 0.0, 0.0,
            0.2 + rows * each, FREE_GIB, placement.memory_gib,
        )  # fmt: skip

    def _row_count(self, stage: str) -> float:
        flow = self.flow
        counts = {
            "curate": sum(flow.sources[s.name].rows for s in self.recipe.curate.sources),
            "decontaminate": flow.curated_rows,
            "mix": flow.curated_rows,
            "sample_prompts": flow.curated_rows,
            "pair": flow.prompts.rows,
            "report": sum(flow.instances.values()),
        }
        return counts.get(stage, 0.0)

    def _import(self, node: Node, placement: Placement) -> StagePlan:
        shape = self.base[0]
        return StagePlan(
            node.name, node.stage, placement.device.name, placement.count, 0.0, 0.0, 0.0,
            1.0 + 4 * shape.parameters / 1e9, FREE_GIB, placement.memory_gib,
        )  # fmt: skip

    def _pair_count(self) -> float:
        pair = self.recipe.pair
        rows = self.flow.prompts.rows
        return min(rows, pair.max_pairs) if pair and pair.max_pairs else rows


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


def _loading(shape: ModelShape, placement: Placement) -> float:
    """Reading the weights and writing the trained ones, at a gigabyte a second."""
    return 2 * 4 * shape.parameters / 1e9
