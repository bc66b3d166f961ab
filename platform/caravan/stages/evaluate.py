"""Score a model on the suite, keeping every instance.

Outputs `scores.json` (a list of scores with 95 % intervals) and `instances.jsonl`: prompt,
completion, what was extracted, score and ratings, one line for each completion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from caravan.data.io import write_json, write_rows
from caravan.data.records import EvalInstance
from caravan.errors import RecipeError
from caravan.evals.judging import Judge, load_judge
from caravan.evals.scoring import ScoredCompletion, judged, task_scores, verified
from caravan.evals.tasks import TASKS, task_files
from caravan.inference import load_engine
from caravan.recipe import EvalTask, JudgeConfig
from caravan.stages.configs import EvaluateStageConfig
from caravan.stages.context import Score, StageContext, StageResult

NAME = "evaluate"
VERSION = 1

INSTANCES = "instances.jsonl"
SCORES = "scores.json"


def external_files(config: EvaluateStageConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of the tasks, whose content the scores depend on."""
    return task_files(config.evaluate.tasks, recipe_dir)


def run(
    config: EvaluateStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    suite = config.evaluate
    loaded = [(task, load_instances(task, context)) for task in suite.tasks]
    judge = _judge(config, context)
    engine = load_engine(inputs["model"], kind=suite.engine, batch_size=suite.batch_size)
    total = sum(len(instances) for _, instances in loaded)
    rows: list[ScoredCompletion] = []
    scores: list[Score] = []
    metrics: dict[str, float] = {}
    done = 0
    for task, instances in loaded:
        definition = TASKS[task.task]
        finished = done

        def progress(part: int, of: int, finished: int = finished, n: int = len(instances)) -> None:
            context.progress(finished + n * part // max(of, 1), total)

        replies = engine.generate(
            [instance.messages for instance in instances],
            task.sampling,
            n=task.num_generations,
            seed=context.seed,
            progress=progress,
        )
        if definition.judged:
            if judge is None:
                raise RecipeError(f"task {task.name!r} is rated by a judge: set evaluate.judge")
            found = judged(task, instances, replies, judge, context.seed)
        else:
            threads = suite.resources.cpus
            found = verified(task, definition.metrics, instances, replies, threads)
        done += len(instances)
        context.progress(done, total)
        rows += found
        of_task = task_scores(task, definition, found)
        scores += of_task
        if of_task:
            metrics[task.name] = of_task[0].value
        metrics[f"{task.name}/truncated"] = _share(r.finish_reason == "length" for r in found)
        metrics[f"{task.name}/undecided"] = sum(row.score is None for row in found)
    directory = context.output("evaluation", "report")
    write_rows(directory / INSTANCES, rows)
    write_json(directory / SCORES, scores_document(suite.tasks, scores))
    return StageResult(metrics=metrics, scores=tuple(scores))


def load_instances(task: EvalTask, context: StageContext) -> list[EvalInstance]:
    return TASKS[task.task].load(task, context.seed, context.recipe_dir)


def scores_document(tasks: Iterable[EvalTask], scores: Iterable[Score]) -> list[dict[str, object]]:
    """The scores; `primary` marks the one a task is known by, which also has its instances."""
    by_name = {task.name: task for task in tasks}
    seen: set[str] = set()
    document = []
    for score in scores:
        entry = asdict(score)
        entry["primary"] = score.task not in seen
        if not entry["primary"]:
            del entry["instances"]
        entry["group"] = by_name[score.task].group
        entry["judged"] = TASKS[by_name[score.task].task].judged
        seen.add(score.task)
        document.append(entry)
    return document


def _judge(config: EvaluateStageConfig, context: StageContext) -> Judge | None:
    if config.evaluate.judge is None:
        return None
    engine = config.engine
    aspects = JudgeConfig(judge=config.evaluate.judge).aspects
    return load_judge(
        config.evaluate.judge,
        None if engine is None else lambda: load_engine(engine, recipe_dir=context.recipe_dir),
        aspects,
    )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
