"""What the stages that ask models take.

Decoding is bound by memory or by operations, whichever is slower.
"""

from __future__ import annotations

from dataclasses import replace

from caravan.errors import CaravanError
from caravan.planning import work
from caravan.planning.devices import GIB, Placement
from caravan.planning.flow import Stream
from caravan.planning.memory import HEADROOM, rows_at_once
from caravan.planning.plan import StagePlan
from caravan.planning.planned import Node, PlannedRecipe
from caravan.planning.row_stages import rows_stage
from caravan.planning.shapes import ModelShape, shape_of_model
from caravan.planning.work import Work, loading_seconds
from caravan.recipe import (
    EngineConfig,
    JudgeConfig,
    LLMJudge,
    OpenAIEngineConfig,
    ProgramEngineConfig,
    Resources,
    Sampling,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.stages.candidates import selects_from
from caravan.stages.configs import (
    OWN_MODEL_ROWS,
    EvaluateStageConfig,
    JudgeStageConfig,
    RespondStageConfig,
    SynthesizeStageConfig,
)

HOSTED_TOKENS_PER_SECOND = 60.0
"""Of one request to a hosted model."""
OPTIONS = 8
"""Of a question whose options are weighed; TruthfulQA's have 7.6."""
RATING_TOKENS = 60
"""A judge's words about one completion."""
RUBRIC_TOKENS = 300
"""Of what a judge is told beside prompt and reply."""
CLASSIFIER_FRAME_TOKENS, CLASSIFIER_REPLY_TOKENS = 100, 20
"""What a safety classifier is told beside prompt and reply, and its three answers."""


def respond(
    planned: PlannedRecipe, node: Node, placement: Placement, config: RespondStageConfig
) -> StagePlan:
    prompts = planned.flow.prompts
    share = 1.0
    if config.drawn_from and config.member.artifact is None:
        share = config.drawn / len(config.drawn_from)
    rows = prompts.rows * share * config.member.num_generations
    asked = replace(prompts, rows=rows)
    reply = planned.reply(config.sampling, base=config.member.artifact == "base")
    if config.engine is None:
        engine = _own_engine(config.own_engine, OWN_MODEL_ROWS, config.resources)
        return _asked(planned, node, placement, engine, asked, reply, config.sampling,
                      shape=planned.shape)  # fmt: skip
    return _asked(planned, node, placement, config.engine, asked, reply, config.sampling)


def judge(
    planned: PlannedRecipe, node: Node, placement: Placement, config: JudgeStageConfig
) -> StagePlan:
    answering, prompts = planned.recipe.respond, planned.flow.prompts
    assert answering is not None
    replies = answering.models_per_prompt or sum(m.num_generations for m in answering.pool)
    if config.engine is None or not isinstance(config.judge.judge, LLMJudge):
        return rows_stage(planned, node, placement, prompts.rows * replies)
    requests = prompts.rows * len(config.judge.aspects)
    length = prompts.prompt_tokens + replies * prompts.reply_tokens
    written = RATING_TOKENS * replies
    asked = Stream(requests, length, written)
    return _asked(planned, node, placement, config.engine, asked, written,
                  config.judge.judge.sampling)  # fmt: skip


def synthesize(
    planned: PlannedRecipe, node: Node, placement: Placement, config: SynthesizeStageConfig
) -> StagePlan:
    plans = []
    for task in config.synthesize.tasks:
        stream = planned.flow.sources[task.name]
        sampling = task.sampling or config.synthesize.sampling
        for name, written in (
            (task.prompt_engine, stream.prompt_tokens),
            (task.response_engine, stream.reply_tokens),
        ):
            plans.append(
                _asked(planned, node, placement, config.engines[name], stream, written, sampling)
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


def evaluate(
    planned: PlannedRecipe, node: Node, placement: Placement, config: EvaluateStageConfig
) -> StagePlan:
    from caravan.evals.tasks import TASKS

    suite = config.evaluate
    engine = _own_engine(suite.engine, suite.batch_size, suite.resources)
    plans = []
    for task in suite.tasks:
        rows = planned.flow.instances[task.name] * task.num_generations
        turns = 1 + task.num_fewshot
        reply = planned.reply(task.sampling, base=node.name.endswith("-base"))
        if task.task in TASKS and TASKS[task.task].weighed:
            # Options are read, nothing is written; the examples are short and in the same turn.
            rows, turns, reply = rows * OPTIONS, 1, 1
        asked = Stream(rows, planned.flow.mix.prompt_tokens * turns)
        plans.append(_asked(planned, node, placement, engine, asked, reply, task.sampling,
                            shape=planned.shape))  # fmt: skip
    start = placement.device.start_seconds + loading_seconds(planned.shape)
    judges = _judges(planned, node, placement, config)
    seconds = start + sum(plan.seconds - start for plan in plans)
    seconds += sum(plan.seconds - placement.device.start_seconds for plan in judges)
    return replace(
        plans[0], seconds=seconds,
        rows=sum(plan.rows for plan in plans), tokens=sum(p.tokens for p in (*plans, *judges)),
        flops=sum(p.flops for p in (*plans, *judges)),
        memory_gib=max(p.memory_gib for p in (*plans, *judges)),
        problem=next((p.problem for p in (*plans, *judges) if p.problem), ""),
    )  # fmt: skip


def select(
    planned: PlannedRecipe, node: Node, placement: Placement, config: EvaluateStageConfig
) -> StagePlan:
    """One evaluation after another."""
    count = planned.candidates[selects_from(node.name)]
    once = evaluate(planned, node, placement, config)
    start = placement.device.start_seconds
    return replace(
        once, seconds=start + count * (once.seconds - start), rows=count * once.rows,
        tokens=count * once.tokens, flops=count * once.flops,
    )  # fmt: skip


def _judges(
    planned: PlannedRecipe, node: Node, placement: Placement, config: EvaluateStageConfig
) -> list[StagePlan]:
    """What the judge and the safety classifier add; each is loaded once, after the model."""
    from caravan.evals.safety import SAMPLING
    from caravan.evals.tasks import TASKS

    rated = compared = classified = 0.0
    asked: list[float] = []
    for task in config.evaluate.tasks:
        definition = TASKS.get(task.task)
        if definition is None:
            continue
        rows = planned.flow.instances[task.name] * task.num_generations
        rated += rows * definition.judged
        compared += rows * definition.compared
        classified += rows * bool(definition.classified)
        if definition.judged or definition.compared or definition.classified:
            asked.append(planned.reply(task.sampling, base=node.name.endswith("-base")))
    if not asked:
        return []
    read = planned.flow.mix.prompt_tokens + sum(asked) / len(asked)
    plans = []
    judge = config.evaluate.judge
    if rated + compared and config.engine is not None and isinstance(judge, LLMJudge):
        requests = compared + rated * len(JudgeConfig(judge=judge).aspects)
        stream = Stream(requests, read + RUBRIC_TOKENS)
        plans.append(_asked(planned, node, placement, config.engine, stream, RATING_TOKENS,
                            judge.sampling))  # fmt: skip
    if classified and config.safety_engine is not None:
        stream = Stream(classified, read + CLASSIFIER_FRAME_TOKENS)
        plans.append(_asked(planned, node, placement, config.safety_engine, stream,
                            CLASSIFIER_REPLY_TOKENS, SAMPLING))  # fmt: skip
    return plans


def _own_engine(kind: str, batch_size: int, resources: Resources) -> EngineConfig:
    """Of a model of the run."""
    if kind == "vllm":
        return VLLMEngineConfig(model_name_or_path="", tensor_parallel_size=max(1, resources.gpus))
    return TransformersEngineConfig(model_name_or_path="", batch_size=batch_size)


def _asked(
    planned: PlannedRecipe,
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
        return rows_stage(planned, node, placement, asked.rows)
    if isinstance(engine, OpenAIEngineConfig):
        each = 1.0 + reply / HOSTED_TOKENS_PER_SECOND
        found = Work(asked.rows * each / engine.concurrency, 0.0)
    else:
        assert isinstance(engine, TransformersEngineConfig | VLLMEngineConfig)
        if shape is None:
            shape = _engine_shape(planned, engine.model_name_or_path)
        vllm = isinstance(engine, VLLMEngineConfig)
        batch = (
            engine.batch_size
            if isinstance(engine, TransformersEngineConfig)
            else (work.VLLM_ROWS * max(1, placement.count // engine.tensor_parallel_size))
        )
        gpu = placement.on_gpu
        held = (2 if gpu else 4) * shape.parameters / GIB
        if isinstance(engine, VLLMEngineConfig):
            held /= engine.tensor_parallel_size
        memory += held
        length = asked.prompt_tokens + sampling.max_completion_length
        if isinstance(engine, VLLMEngineConfig):  # what vLLM finds free it takes for its cache
            memory = max(memory, engine.gpu_memory_utilization * placement.memory_gib)
        else:
            batch, cache = rows_at_once(batch, shape, placement, memory, length, bf16=gpu)
            memory += cache
        if held > placement.memory_gib * HEADROOM:
            remedy = "raise tensor_parallel_size and gpus" if vllm else "take one with more memory"
            problem = f"the weights alone are {held:.1f} GiB of {placement.memory_gib:g}; {remedy}"
        elif memory > placement.memory_gib and not vllm:
            problem = (
                f"weights, keys and values of {batch} replies are {memory:.1f} GiB of "
                f"{placement.memory_gib:g}; lower max_completion_length or the engine's batch_size"
            )
        found = work.decoding(
            shape, placement, rows=asked.rows, prompt_tokens=asked.prompt_tokens,
            reply_tokens=reply, longest_reply=sampling.max_completion_length,
            batch_size=batch, continuous=vllm,
        )  # fmt: skip
        start += loading_seconds(shape)
    return StagePlan(
        node.name, node.stage, placement.device.name, placement.count, asked.rows, tokens,
        found.flops, start + found.seconds, memory, placement.memory_gib, problem=problem,
    )  # fmt: skip


def _engine_shape(planned: PlannedRecipe, name: str) -> ModelShape:
    try:
        return shape_of_model(name, planned.recipe_dir)[0]
    except CaravanError as error:
        planned.notes.append(f"{error}; taken to be of the base model's size")
        return planned.shape
