"""Rate the completions of every prompt on the four aspects of UltraFeedback.

Tülu 3, section 5.2.1: a judge sees all completions of a prompt side by side, once for each aspect.
Everything is keyed by the prompt's id: a completion whose prompt is not there is an error, and one
whose rating cannot be read is counted, never taken for a bad one. A prompt that was too long for
one of its models is left out for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Completion, Conversation, RatedCompletion
from caravan.errors import DataError
from caravan.evals.judging import JudgeItem, load_judge
from caravan.inference import load_engine
from caravan.stages.configs import JudgeStageConfig
from caravan.stages.context import StageContext, StageResult

NAME = "judge"
VERSION = 1


def run(config: JudgeStageConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    prompts = {row.id: row for row in read_rows(inputs["prompts"], Conversation)}
    tables = [inputs[name] for name in sorted(inputs) if name.startswith("completions")]
    gathered = gather(prompts, tables)
    by_prompt = {
        prompt_id: completions
        for prompt_id, completions in gathered.items()
        if all(completion.finish_reason != "too_long" for completion in completions)
    }
    engine = config.engine
    judge = load_judge(
        config.judge.judge,
        None if engine is None else lambda: load_engine(engine, recipe_dir=context.recipe_dir),
        config.judge.aspects,
    )
    items = [
        JudgeItem(
            id=prompt_id,
            messages=prompts[prompt_id].prompt,
            completions=tuple(completion.text for completion in completions),
            skill=prompts[prompt_id].skill,
            verifier=prompts[prompt_id].verifier,
            ground_truth=prompts[prompt_id].ground_truth,
        )
        for prompt_id, completions in by_prompt.items()
    ]
    judgements = judge.judge(items, seed=context.seed, progress=context.progress)
    ratings = [
        RatedCompletion(
            completion=completion, ratings=judgement.ratings, rationale=judgement.rationale
        )
        for completions, judged in zip(by_prompt.values(), judgements, strict=True)
        for completion, judgement in zip(completions, judged, strict=True)
        if judgement.mean_rating is not None
    ]
    write_rows(context.output("ratings", "completions") / "rows.jsonl", ratings)
    asked = sum(len(completions) for completions in by_prompt.values())
    complete = sum(len(row.ratings) == len(config.judge.aspects) for row in ratings)
    return StageResult(
        metrics={
            "prompts": len(items),
            "prompts_too_long": len(gathered) - len(items),
            "completions": asked,
            "refused": asked - complete,
            **_means(ratings),
        }
    )


def gather(prompts: Mapping[str, Conversation], tables: list[Path]) -> dict[str, list[Completion]]:
    """The completions of each prompt, in the order of the prompts, then of model and index."""
    found: dict[str, dict[tuple[str, int], Completion]] = defaultdict(dict)
    for table in tables:
        for number, row in enumerate(read_rows(table, Completion), start=1):
            if row.prompt_id not in prompts:
                raise DataError(
                    f"{table}/rows.jsonl, row {number}: prompt {row.prompt_id!r} is not among the "
                    "prompts; were the completions made for others?"
                )
            if (row.model, row.index) in found[row.prompt_id]:
                raise DataError(
                    f"{table}/rows.jsonl, row {number}: a second completion {row.index} of "
                    f"{row.model!r} to {row.prompt_id!r}"
                )
            found[row.prompt_id][row.model, row.index] = row
    return {
        prompt_id: [row for _, row in sorted(found[prompt_id].items())]
        for prompt_id in prompts
        if prompt_id in found
    }


def _means(rows: list[RatedCompletion]) -> dict[str, float]:
    """Mean rating of each model of the pool."""
    ratings: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        ratings[row.completion.model].append(row.mean_rating)
    return {
        f"mean_rating/{model}": sum(values) / len(values)
        for model, values in sorted(ratings.items())
    }
