"""From completions to scores, instance by instance.

One line of `instances.jsonl`, the file behind every score:

    {"task": "math", "id": "gsm8k/17", "index": 0, "skill": "", "messages": [...],
     "ground_truth": "18", "completion": "... 18", "finish_reason": "stop", "extracted": "18",
     "score": 1.0, "metrics": {"exact_match": 1.0}}
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import Field

from caravan.data.records import Aspect, EvalInstance, FinishReason, Message, Record
from caravan.evals.judging import Judge, JudgeItem
from caravan.evals.pairwise import Pair, prefer
from caravan.evals.safety import classify
from caravan.evals.stats import (
    Interval,
    bootstrap_interval,
    length_controlled,
    macro_interval,
    mean_interval,
    pass_at_k,
)
from caravan.evals.tasks import Metric, TaskDefinition, Weighing
from caravan.inference import TOO_LONG, Engine, Generation
from caravan.recipe import EvalTask, Sampling
from caravan.stages.context import Score
from caravan.verifiers import VERIFIERS, Verdict, Verifier, VerifierError, waits

logger = logging.getLogger(__name__)

WORST_RATING = 1.0
_ATTEMPTS = 2
"""Runs of a verifier that itself fails, before the instance is left out."""


class ScoredCompletion(Record):
    """One completion of one instance, with all that its score rests on."""

    task: str
    """Name of the task in the recipe."""
    id: str
    index: int = 0
    """Which of several completions."""
    skill: str = ""
    messages: tuple[Message, ...]
    ground_truth: Any = None
    completion: str
    finish_reason: FinishReason
    extracted: str | None = None
    """What a verifier compared, or what a safety classifier said."""
    score: float | None = None
    """By the task's first metric; None where the verifier or the judge failed."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """By each metric of the task."""
    ratings: dict[Aspect, int | None] | None = None
    """By the judge, for judged tasks."""
    log_likelihoods: dict[str, float] | None = None
    """Of each option, in nats, where they are weighed; the completion is then the likeliest."""

    @property
    def cut_short(self) -> str:
        """Why there is no whole reply; empty where there is."""
        return {"stop": "", "length": "cut off", "too_long": "prompt too long"}[self.finish_reason]


def verified(
    task: EvalTask,
    metrics: Sequence[Metric],
    instances: Sequence[EvalInstance],
    replies: Sequence[Sequence[Generation]],
    threads: int,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
) -> list[ScoredCompletion]:
    """Every reply with the verdicts of the task's verifiers."""
    work = _each(instances, replies)

    def score(part: tuple[EvalInstance, int, Generation]) -> ScoredCompletion:
        instance, index, reply = part
        verdicts = {m: _verdict(verifiers[m.verifier], instance, reply.text) for m in metrics}
        values = {
            m.name: float(verdict.correct) if m.count == "correct" else verdict.score
            for m, verdict in verdicts.items()
            if verdict is not None
        }
        first = verdicts[metrics[0]]
        return _row(
            task,
            instance,
            index,
            reply,
            extracted=first.extracted if first else None,
            score=values.get(metrics[0].name),
            metrics=values,
        )

    if waits(verifiers[metrics[0].verifier]):
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(score, work))
    return [score(part) for part in work]


def _each(
    instances: Sequence[EvalInstance], replies: Sequence[Sequence[Generation]]
) -> list[tuple[EvalInstance, int, Generation]]:
    """Every reply with its instance and its number among the instance's."""
    return [
        (instance, index, reply)
        for instance, several in zip(instances, replies, strict=True)
        for index, reply in enumerate(several)
    ]


def _verdict(verifier: Verifier, instance: EvalInstance, text: str) -> Verdict | None:
    for attempt in range(_ATTEMPTS):
        try:
            return verifier(text, instance.ground_truth)
        except VerifierError as error:
            if attempt + 1 == _ATTEMPTS:
                logger.warning("%s has no score: %s", instance.id, error)
    return None


def judged(
    task: EvalTask,
    instances: Sequence[EvalInstance],
    replies: Sequence[Sequence[Generation]],
    judge: Judge,
    seed: int,
) -> list[ScoredCompletion]:
    """Every reply with the judge's ratings; the score is their mean."""
    items = [
        JudgeItem(
            id=instance.id,
            messages=instance.messages,
            completions=tuple(reply.text for reply in several),
            skill=instance.skill,
            ground_truth=instance.ground_truth,
        )
        for instance, several in zip(instances, replies, strict=True)
    ]
    rows = []
    judgements = judge.judge(items, seed=seed)
    for instance, several, ratings in zip(instances, replies, judgements, strict=True):
        for index, (reply, judgement) in enumerate(zip(several, ratings, strict=True)):
            rated = _scored("mean_rating", judgement.mean_rating)
            rows.append(_row(task, instance, index, reply, ratings=judgement.ratings, **rated))
    return rows


def classified(
    task: EvalTask,
    metric: str,
    instances: Sequence[EvalInstance],
    replies: Sequence[Sequence[Generation]],
    classifier: Engine,
    seed: int,
) -> list[ScoredCompletion]:
    """Every reply with whether it is what its prompt wants, by a safety classifier."""
    work = _each(instances, replies)
    pairs = [(instance.messages[-1].content, reply.text) for instance, _, reply in work]
    rows = []
    said = classify(classifier, pairs, seed=seed)
    for (instance, index, reply), (text, found) in zip(work, said, strict=True):
        met = None if found is None else found.meets(instance.ground_truth)
        decided = _scored(metric, met)
        rows.append(_row(task, instance, index, reply, extracted=text.strip(), **decided))
    return rows


def weighed(
    task: EvalTask,
    metrics: Sequence[Weighing],
    instances: Sequence[EvalInstance],
    log_likelihoods: Sequence[Sequence[float]],
) -> list[ScoredCompletion]:
    """Every instance with what the likelihoods of its options say."""
    rows = []
    for instance, found in zip(instances, log_likelihoods, strict=True):
        known = dict(zip(instance.options, found, strict=True))
        values = {name: WEIGHINGS[name](known, instance.ground_truth) for name in metrics}
        reply = Generation(likeliest(known), "stop")
        rows.append(
            _row(
                task,
                instance,
                0,
                reply,
                score=values[metrics[0]],
                metrics=values,
                log_likelihoods=known,
            )
        )
    return rows


def share_of_true(log_likelihoods: Mapping[str, float], true: Collection[str]) -> float:
    """Of the probability of all options, the part on the true ones: MC2 of TruthfulQA (Lin et al.
    2022, arXiv:2109.07958; github.com/sylinrl/TruthfulQA)."""
    shares = option_shares(log_likelihoods)
    return sum(shares[option] for option in true)


def likeliest(log_likelihoods: Mapping[str, float]) -> str:
    return max(log_likelihoods, key=log_likelihoods.__getitem__)


def likeliest_is_true(log_likelihoods: Mapping[str, float], true: Collection[str]) -> float:
    return float(likeliest(log_likelihoods) in true)


def likeliest_for_its_length_is_true(
    log_likelihoods: Mapping[str, float], true: Collection[str]
) -> float:
    """By the log-likelihood of a character, as lm-evaluation-harness normalises it."""
    return float(max(log_likelihoods, key=lambda o: log_likelihoods[o] / len(o)) in true)


WEIGHINGS: dict[Weighing, Callable[[Mapping[str, float], Collection[str]], float]] = {
    "mc2": share_of_true,
    "acc": likeliest_is_true,
    "acc_norm": likeliest_for_its_length_is_true,
}


def option_shares(log_likelihoods: Mapping[str, float]) -> dict[str, float]:
    """What each option has of the probability of all of them."""
    most = max(log_likelihoods.values())
    masses = {option: math.exp(value - most) for option, value in log_likelihoods.items()}
    total = sum(masses.values())
    return {option: mass / total for option, mass in masses.items()}


def compared(
    task: EvalTask,
    metric: str,
    instances: Sequence[EvalInstance],
    replies: Sequence[Sequence[Generation]],
    judge: Engine,
    sampling: Sampling,
    seed: int,
) -> list[ScoredCompletion]:
    """Every reply with whether a judge prefers it to the reference's."""
    work = _each(instances, replies)
    pairs = [
        Pair(
            f"{instance.id}/{index}",
            instance.messages[-1].content,
            reply.text,
            instance.ground_truth["output"],
            instance.ground_truth["human"],
        )
        for instance, index, reply in work
    ]
    rows = []
    preferred = prefer(judge, pairs, sampling, seed=seed)
    for (instance, index, reply), won in zip(work, preferred, strict=True):
        rows.append(_row(task, instance, index, reply, **_scored(metric, won)))
    return rows


def unanswered(
    task: EvalTask,
    definition: TaskDefinition,
    instances: Sequence[EvalInstance],
) -> list[ScoredCompletion]:
    """Instances that were too long for the model, with the worst score that there is: they count,
    and no verifier is asked, which may be content with no reply."""
    worst = WORST_RATING if definition.judged else 0.0
    names = definition.metric_names
    return [
        _row(
            task,
            instance,
            index,
            TOO_LONG,
            score=worst,
            metrics=dict.fromkeys(names, worst),
            ratings={} if definition.judged else None,
        )
        for instance in instances
        for index in range(task.num_generations)
    ]


def _scored(metric: str, value: float | None) -> dict[str, Any]:
    """The fields of a row that one metric scores; None where nobody could decide."""
    if value is None:
        return {"score": None, "metrics": {}}
    return {"score": float(value), "metrics": {metric: float(value)}}


def _row(
    task: EvalTask, instance: EvalInstance, index: int, reply: Generation, **fields: Any
) -> ScoredCompletion:
    return ScoredCompletion(
        task=task.name,
        id=instance.id,
        index=index,
        skill=instance.skill,
        messages=instance.messages,
        ground_truth=instance.ground_truth,
        completion=reply.text,
        finish_reason=reply.finish_reason,
        **fields,
    )


def task_scores(
    task: EvalTask, definition: TaskDefinition, rows: Sequence[ScoredCompletion]
) -> list[Score]:
    """The score of each metric, with its interval; the task's own first."""
    scores = []
    for name in definition.metric_names:
        shown, values = _per_instance(name, definition, rows)
        if not values:
            continue
        skills = {row.id: row.skill for row in rows}
        interval = _interval(values, skills, definition)
        scores.append(
            Score(
                task=task.name,
                metric=shown,
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=interval.n,
                suite=task.suite,
                instances=values,
            )
        )
    if definition.length_controlled and scores:
        scores.append(_length_controlled(task, rows))
    return scores


def _length_controlled(task: EvalTask, rows: Iterable[ScoredCompletion]) -> Score:
    decided = [row for row in rows if row.score is not None]
    wins = np.array([row.score for row in decided], dtype=np.float64)
    longer_by = np.array(
        [len(row.completion) - len(row.ground_truth["output"]) for row in decided], dtype=np.float64
    )
    interval = bootstrap_interval(
        lambda chosen: length_controlled(wins[chosen], longer_by[chosen]), len(decided)
    )
    return Score(
        task=task.name,
        metric="length_controlled_minimal_win_rate",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        suite=task.suite,
    )


def _per_instance(
    name: str, definition: TaskDefinition, rows: Iterable[ScoredCompletion]
) -> tuple[str, dict[str, float]]:
    """The metric's name as shown, and the value of each instance over its completions."""
    several: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if name in row.metrics:
            several[row.id].append(row.metrics[name])
    if definition.pass_at is None:
        return name, {id: sum(values) / len(values) for id, values in several.items()}
    k = min(definition.pass_at, min((len(values) for values in several.values()), default=1))
    passed = {id: pass_at_k(len(values), round(sum(values)), k) for id, values in several.items()}
    return f"{name}@{k}", passed


def _interval(
    values: Mapping[str, float], skills: Mapping[str, str], definition: TaskDefinition
) -> Interval:
    if not definition.macro:
        return mean_interval(list(values.values()))
    groups: dict[str, list[float]] = defaultdict(list)
    for id, value in values.items():
        groups[skills[id]].append(value)
    return macro_interval([groups[skill] for skill in sorted(groups)])
