"""The evaluation suite and the report."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from caravan.config import Config
from caravan.recipe.common import Name, Resources, Sampling
from caravan.recipe.preferences import JudgeEngine

VERIFY = "verify"
"""The task of one's own questions, scored by the verifier that it names."""


class EvalTask(Config):
    """One task of the suite."""

    name: Name
    """What the scores are listed under; another one for each task of the suite."""
    task: Name
    """What is asked: a benchmark of docs/evaluation.md such as `gsm8k` or `ifeval`, or `verify` or
    `weigh` for questions of your own."""
    verifier: Name | None = None
    """Of `verify` alone: what decides whether a reply is right."""
    suite: Literal["dev", "unseen"] = "dev"
    """`dev` for tasks that recipes are chosen by, `unseen` for those that they are not."""
    limit: PositiveInt | None = None
    """Instances to take; None takes all."""
    group: Name | None = None
    """Tasks of one group count as one row of the suite's average: by their mean."""
    num_fewshot: NonNegativeInt = 0
    """Worked examples before each question, of tasks that have some."""
    path: str | None = None
    """File or folder with the questions, relative to the recipe's directory; docs/evaluation.md has
    the columns of each task."""
    num_generations: PositiveInt = 1
    """Completions per instance; pass@k of code tasks needs more than one."""
    sampling: Sampling = Sampling(temperature=0.0, max_completion_length=1024)
    """How replies are drawn; greedy where nothing is said."""


class SafetyJudge(Config):
    """Classifies the replies of safety tasks: refused or not, harmful or not."""

    engine: Name
    """A model that is asked, and answers, in the format of WildGuard (arXiv:2406.18495)."""


class EvaluateConfig(Config):
    """What every model of the run is asked, and who decides."""

    tasks: Annotated[tuple[EvalTask, ...], Field(min_length=1)]
    """Benchmarks, and questions of your own."""
    judge: JudgeEngine | None = None
    """Rates the replies of tasks without a verifier."""
    safety_judge: SafetyJudge | None = None
    """Classifier of the safety tasks' replies, which need one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What the models run on."""
    batch_size: PositiveInt = 256
    """Sequences decoded at once."""
    shards: PositiveInt = 1
    """Parts that the tasks are divided into; each part of each model is a stage run of its own."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _shards_have_tasks(self) -> Self:
        if self.shards > len(self.tasks):
            raise ValueError(
                f"shards={self.shards} leaves shards without a task; take at most the number of "
                f"tasks, {len(self.tasks)}"
            )
        return self

    def shard(self, number: int) -> Self:
        """The part of the tasks with this number, from 0, in their order."""
        count = len(self.tasks)
        first, end = (count * i // self.shards for i in (number, number + 1))
        return self.derive(tasks=self.tasks[first:end], shards=1)

    def only(self, names: Collection[str]) -> Self:
        """These of the tasks, in one part."""
        return self.derive(tasks=[task for task in self.tasks if task.name in names], shards=1)


class ReportConfig(Config):
    """The comparison of the models, stage by stage."""

    bootstrap_samples: PositiveInt = 2000
    """Paired bootstrap resamples behind every stage-to-stage difference."""
    resources: Resources = Resources()
