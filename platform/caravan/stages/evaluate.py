"""Score a model on the suite, keeping every instance.

Outputs `scores.json` (a list of scores with 95 % intervals) and `instances.jsonl`: prompt,
completion, what was extracted, score and ratings, one line for each completion. An instance whose
prompt leaves the model no room for a reply counts as not answered. `chat_template.sha256` is the
hash of the chat template that the model was asked in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

from caravan.data.io import write_json, write_rows
from caravan.data.records import EvalInstance
from caravan.data.template_stamp import write_stamp
from caravan.errors import RecipeError, some
from caravan.evals.judging import Judge, load_judge
from caravan.evals.scoring import (
    ScoredCompletion,
    classified,
    compared,
    judged,
    task_scores,
    unanswered,
    verified,
    weighed,
)
from caravan.evals.tasks import TASKS, definition_of, load_instances, task_files
from caravan.inference import (
    TOO_LONG,
    Engine,
    Generation,
    asked_in,
    load_engine,
    unload,
    without_reply,
)
from caravan.inference.likelihood import LikelihoodEngine, log_likelihoods
from caravan.inference.room import Asked, tokens_needed
from caravan.recipe import EngineConfig, EvalTask, EvaluateConfig, JudgeConfig, LLMJudge
from caravan.recipe.verifiers import verifier_files
from caravan.stages.configs import EvaluateStageConfig
from caravan.stages.context import Score, StageContext, StageResult
from caravan.verifiers import VERIFIERS, Verifier, own_verifiers

logger = logging.getLogger(__name__)

NAME = "evaluate"
VERSION = 1

INSTANCES = "instances.jsonl"
SCORES = "scores.json"

Loaded = Sequence[tuple[EvalTask, list[EvalInstance]]]
Replies = list[list[Generation]]
Likelihoods = list[list[float]]
"""Of the options of each instance; empty where they do not fit the model."""
Answered = Sequence[tuple[EvalTask, list[EvalInstance], Replies]]
Progress = Callable[[int, int], None]
"""Told how much of how much is done."""


class Told(NamedTuple):
    """What the model said, by task: of each either replies or likelihoods."""

    replies: dict[str, Replies]
    likelihoods: dict[str, Likelihoods]
    template: str | None
    """Hash of the chat template that it was asked in."""


class Evaluated(NamedTuple):
    rows: list[ScoredCompletion]
    """Every reply with its score."""
    scores: list[Score]
    """Of each task first the one that it is known by."""
    template: str | None
    """Hash of the chat template that the model was asked in."""


def external_files(config: EvaluateStageConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of the tasks and of the recipe's own verifiers, on which the scores depend."""
    yield from task_files(config.evaluate.tasks, recipe_dir)
    yield from verifier_files(config.verifiers, recipe_dir)


def run(
    config: EvaluateStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    found = evaluate_model(inputs["model"], config, context, context.progress)
    metrics: dict[str, float] = {}
    for task in config.evaluate.tasks:
        own = [row for row in found.rows if row.task == task.name]
        of_task = [score for score in found.scores if score.task == task.name]
        if of_task:
            metrics[task.name] = of_task[0].value
        lacking = shares(own)
        metrics[f"{task.name}/truncated"] = lacking["truncated"]
        metrics[f"{task.name}/too_long"] = lacking["too_long"]
        metrics[f"{task.name}/undecided"] = sum(row.score is None for row in own)
        metrics[f"{task.name}/undecided_share"] = lacking["undecided"]
    directory = context.output("evaluation", "report")
    write_rows(directory / INSTANCES, found.rows)
    write_json(directory / SCORES, scores_document(config.evaluate.tasks, found.scores))
    if found.template is not None:
        write_stamp(directory, found.template)
    return StageResult(metrics=metrics, scores=tuple(found.scores))


def evaluate_model(
    model: Path, config: EvaluateStageConfig, context: StageContext, progress: Progress
) -> Evaluated:
    """Ask a model all questions of the suite."""
    suite = config.evaluate
    _check_judges(config)
    loaded = [(t, load_instances(t, context.seed, context.recipe_dir)) for t in suite.tasks]
    with own_verifiers(config.verifiers, context.recipe_dir) as of_recipe:
        told = _ask(loaded, model, suite, context.seed, progress)
        answered, silent = _divided(loaded, told.replies)
        found = _score(answered, config, context, VERIFIERS | of_recipe)
    for task, instances in loaded:
        if likelihoods := told.likelihoods.get(task.name):
            found[task.name], silent[task.name] = _weighed(task, instances, likelihoods)
    rows: list[ScoredCompletion] = []
    scores: list[Score] = []
    for task in suite.tasks:
        own = found[task.name] + silent[task.name]
        rows += own
        scores += task_scores(task, definition_of(task), own)
    return Evaluated(rows, scores, told.template)


def _check_judges(config: EvaluateStageConfig) -> None:
    suite = config.evaluate
    for task in suite.tasks:
        definition = TASKS[task.task]
        if definition.judged and suite.judge is None:
            raise RecipeError(f"task {task.name!r} is rated by a judge: set evaluate.judge")
        if definition.compared and not isinstance(suite.judge, LLMJudge):
            raise RecipeError(
                f"task {task.name!r} is compared by a language model: set evaluate.judge to one"
            )
        if definition.classified and config.safety_engine is None:
            raise RecipeError(
                f"task {task.name!r} is decided by a classifier: set evaluate.safety_judge"
            )


def _ask(loaded: Loaded, model: Path, suite: EvaluateConfig, seed: int, tell: Progress) -> Told:
    asked = [
        Asked(
            task.name,
            [instance.id for instance in instances],
            [instance.messages for instance in instances],
            task.sampling.max_completion_length,
            [instance.options for instance in instances] if definition_of(task).weighed else (),
        )
        for task, instances in loaded
    ]
    engine = load_engine(
        model,
        kind=suite.engine,
        batch_size=suite.batch_size,
        tensor_parallel_size=max(1, suite.resources.gpus),
        max_model_len=tokens_needed(asked, model),
    )
    total = sum(len(instances) for _, instances in loaded)
    told = Told({}, {}, asked_in(engine))
    done = 0
    for (task, instances), group in zip(loaded, asked, strict=True):
        finished = done

        def progress(part: int, of: int, finished: int = finished, n: int = len(instances)) -> None:
            tell(finished + n * part // max(of, 1), total)

        if group.options:
            weighing = cast(LikelihoodEngine, engine)  # it has the model itself
            told.likelihoods[task.name] = log_likelihoods(
                weighing, group.prompts, group.options, progress=progress
            )
        else:
            given = engine.generate(
                group.prompts, task.sampling, n=task.num_generations, seed=seed, progress=progress
            )
            # Without tokens and their probabilities, which for a whole suite are gigabytes.
            told.replies[task.name] = [
                [Generation(g.text, g.finish_reason) for g in several] for several in given
            ]
        done += len(instances)
        tell(done, total)
    unload(engine)
    return told


def _divided(
    loaded: Loaded, replies: Mapping[str, Replies]
) -> tuple[Answered, dict[str, list[ScoredCompletion]]]:
    """What is to be scored, and by task the rows of what was too long to be answered."""
    answered, silent = [], {}
    for task, instances in loaded:
        if task.name not in replies:
            continue
        groups = replies[task.name]
        if too_long := without_reply([instance.id for instance in instances], groups):
            logger.warning(
                "%s: %d of %d prompts leave the model no room for a reply and count as not "
                "answered: %s", task.name, len(too_long), len(instances), some(too_long),
            )  # fmt: skip
        asked = [i for i, group in enumerate(groups) if TOO_LONG not in group]
        answered.append((task, [instances[i] for i in asked], [groups[i] for i in asked]))
        left = [instance for i, instance in enumerate(instances) if TOO_LONG in groups[i]]
        silent[task.name] = unanswered(task, definition_of(task), left)
    return answered, silent


def _weighed(
    task: EvalTask, instances: Sequence[EvalInstance], found: Likelihoods
) -> tuple[list[ScoredCompletion], list[ScoredCompletion]]:
    """The instances with their scores, and those that are too long for the model."""
    definition = definition_of(task)
    told = [(instance, known) for instance, known in zip(instances, found, strict=True) if known]
    left = [instance for instance, known in zip(instances, found, strict=True) if not known]
    if left:
        logger.warning(
            "%s: %d of %d prompts do not fit the model with their options and count as not "
            "answered: %s", task.name, len(left), len(instances), some([i.id for i in left]),
        )  # fmt: skip
    rows = weighed(task, definition.weighed, [i for i, _ in told], [known for _, known in told])
    return rows, unanswered(task, definition, left)


def _score(
    answered: Answered,
    config: EvaluateStageConfig,
    context: StageContext,
    verifiers: Mapping[str, Verifier],
) -> dict[str, list[ScoredCompletion]]:
    """Every reply with its score, by task. Of the models that judge, one is loaded at a time."""
    suite, seed = config.evaluate, context.seed
    found: dict[str, list[ScoredCompletion]] = {}
    of_judge, of_classifier = [], []
    for task, instances, own in answered:
        definition = definition_of(task)
        if definition.judged or definition.compared:
            of_judge.append((task, instances, own))
        elif definition.classified:
            of_classifier.append((task, instances, own))
        else:
            threads = suite.resources.cpus
            found[task.name] = verified(
                task, definition.metrics, instances, own, threads, verifiers
            )
    if of_judge:
        with _loaded(config.engine, context) as engine:
            for task, instances, own in of_judge:
                if TASKS[task.task].judged:
                    judge = _judge(suite, engine)
                    found[task.name] = judged(task, instances, own, judge, seed)
                else:
                    assert isinstance(suite.judge, LLMJudge)
                    assert engine is not None
                    metric, sampling = TASKS[task.task].metric, suite.judge.sampling
                    found[task.name] = compared(
                        task, metric, instances, own, engine, sampling, seed
                    )
    if of_classifier:
        with _loaded(config.safety_engine, context, special_tokens=True) as engine:
            assert engine is not None
            for task, instances, own in of_classifier:
                metric = TASKS[task.task].metric
                found[task.name] = classified(task, metric, instances, own, engine, seed)
    return found


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


def _judge(suite: EvaluateConfig, engine: Engine | None) -> Judge:
    assert suite.judge is not None
    aspects = JudgeConfig(judge=suite.judge).aspects
    return load_judge(suite.judge, None if engine is None else lambda: engine, aspects)


@contextmanager
def _loaded(
    engine: EngineConfig | None, context: StageContext, *, special_tokens: bool = False
) -> Iterator[Engine | None]:
    """The engine as long as it is needed; None where a program judges."""
    if engine is None:
        yield None
        return
    found = load_engine(engine, recipe_dir=context.recipe_dir, special_tokens=special_tokens)
    yield found
    unload(found)


def shares(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    """What is told beside a score, in shares of its replies; 0 where there are none."""
    count = max(1, len(rows))
    return {
        "truncated": sum(row.finish_reason == "length" for row in rows) / count,
        "too_long": sum(row.finish_reason == "too_long" for row in rows) / count,
        "undecided": sum(row.score is None for row in rows) / count,
    }
