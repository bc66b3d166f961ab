"""One model of the pool answers the prompts.

Inputs: `prompts`, conversations that end with a user's turn; `model`, where the member is a model
of this run. Output: `completions`, in the order of the prompts:

    {"prompt_id": "pocket-gsm/17", "model": "terse", "index": 0, "text": "19",
     "finish_reason": "stop", ...}

Prompts are answered a chunk at a time, and finished chunks are kept in the work directory: a stage
that was stopped asks its engine only for the rest.

A prompt that leaves the model no room for a reply has a row all the same, with the finish reason
`too_long` and no text: it is left out for every model of the pool.

`chat_template.sha256` is the hash of the chat template that a model in memory was asked in.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from caravan.data.io import ROWS, read_rows, write_rows
from caravan.data.records import Completion, Conversation
from caravan.data.template_stamp import recorded_hash, write_stamp
from caravan.errors import StageError, some
from caravan.inference import Engine, asked_in, load_engine, naming
from caravan.inference.room import Asked, tokens_needed
from caravan.stages.configs import OWN_MODEL_ROWS, RespondStageConfig
from caravan.stages.context import StageContext, StageResult

NAME = "respond"
VERSION = 2

PROMPTS_PER_CHUNK = 256

logger = logging.getLogger(__name__)


def run(
    config: RespondStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    rows = read_rows(inputs["prompts"], Conversation)
    prompts = [row for row in rows if config.answers(row.id)]
    chunks = [prompts[i : i + PROMPTS_PER_CHUNK] for i in range(0, len(prompts), PROMPTS_PER_CHUNK)]
    done = [context.workdir / f"chunk-{number:06d}.jsonl" for number in range(len(chunks))]
    missing = [number for number, path in enumerate(done) if not path.exists()]
    if missing:
        _prepare(config, context.seed)
        engine = _engine(config, inputs, prompts, context.recipe_dir)
        if (template := asked_in(engine)) is not None:
            write_stamp(context.workdir, template)
        for number in missing:
            write_rows(
                done[number], _answer(engine, config, chunks[number], number, len(prompts), context)
            )
    context.progress(len(prompts), len(prompts))

    completions = (c for path in done for c in read_rows(path, Completion))
    counts = {"completions": 0, "characters": 0, "truncated": 0}
    too_long: dict[str, None] = {}  # a set that keeps the order

    def counted() -> Iterator[Completion]:
        for completion in completions:
            if completion.finish_reason == "too_long":
                too_long[completion.prompt_id] = None
            else:
                counts["completions"] += 1
                counts["characters"] += len(completion.text)
                counts["truncated"] += completion.finish_reason == "length"
            yield completion

    output = context.output("completions", "completions")
    write_rows(output / ROWS, counted())
    if (template := recorded_hash(context.workdir)) is not None:
        write_stamp(output, template)
    if too_long:
        said = f"{len(too_long)} of {len(prompts)} prompts leave {config.member.name!r} no room for"
        said += f" a reply and are left out: {some([*too_long])}"
        if not counts["completions"]:
            raise StageError(f"{said}. Take a model with more positions, or shorter prompts")
        logger.warning("%s", said)
    total = max(1, counts["completions"])
    return StageResult(
        {
            "prompts": len(prompts),
            "prompts_too_long": len(too_long),
            "completions": counts["completions"],
            "mean_characters": counts["characters"] / total,
            "truncated_fraction": counts["truncated"] / total,
        }
    )


def _prepare(config: RespondStageConfig, seed: int) -> None:
    """Threads and algorithms as in training, where this process computes the replies."""
    kind = config.own_engine if config.engine is None else config.engine.kind
    if kind == "transformers":
        from caravan.training.models import prepare_torch

        prepare_torch(config.resources.cpus, seed)


def _engine(
    config: RespondStageConfig,
    inputs: Mapping[str, Path],
    prompts: Sequence[Conversation],
    recipe_dir: Path,
) -> Engine:
    if config.engine is not None:
        return load_engine(config.engine, recipe_dir=recipe_dir)
    if "model" not in inputs:
        raise StageError(
            f"pool member {config.member.name!r} is a model of this run, but no model was given"
        )
    asked = Asked(
        config.member.name,
        [row.id for row in prompts],
        [row.prompt for row in prompts],
        config.sampling.max_completion_length,
    )
    return load_engine(
        inputs["model"],
        kind=config.own_engine,
        batch_size=OWN_MODEL_ROWS,
        tensor_parallel_size=max(1, config.resources.gpus),
        max_model_len=tokens_needed([asked], inputs["model"]),
    )


def _answer(
    engine: Engine,
    config: RespondStageConfig,
    chunk: Sequence[Conversation],
    number: int,
    total: int,
    context: StageContext,
) -> list[Completion]:
    """The member's replies to one chunk; what they are depends on seed and chunk alone."""
    n = config.member.num_generations
    before = number * PROMPTS_PER_CHUNK
    digest = hashlib.sha256(f"{context.seed}/{config.member.name}/{number}".encode()).digest()
    with naming([row.id for row in chunk]):
        replies = engine.generate(
            [row.prompt for row in chunk],
            config.sampling,
            n=n,
            seed=int.from_bytes(digest[:8], "big") >> 1,
            progress=lambda done, _: context.progress(before + done // n, total),
        )
    return [
        Completion(
            prompt_id=row.id,
            model=config.member.name,
            index=index,
            text=reply.text,
            finish_reason=reply.finish_reason,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
        )
        for row, group in zip(chunk, replies, strict=True)
        for index, reply in enumerate(group)
    ]
