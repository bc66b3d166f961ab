"""The evaluation tasks: where their instances come from, and how a completion is scored.

    TASKS["gsm8k"].load(EvalTask(name="gsm8k", task="gsm8k", path="gsm8k/test.jsonl"), seed)

Instances never depend on the recipe's seed, and `limit` takes the same ones every time, so that
scores compare over runs. Settings follow section 7 of the Tülu 3 paper (arXiv:2411.15124).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from caravan.data.records import EvalInstance
from caravan.errors import DataError, RecipeError
from caravan.evals import exams, files, own, pairwise, safety
from caravan.recipe import EvalTask
from caravan.recipe.checks import suggest
from caravan.recipe.evaluation import VERIFY
from caravan.verifiers import VERIFIERS


class Load(Protocol):
    def __call__(
        self, config: EvalTask, seed: int, recipe_dir: Path = Path()
    ) -> list[EvalInstance]:
        """The instances of a task, in a fixed order.

        Raises:
            DataError: files are missing, with where to put them, or cannot be read.
        """
        ...


@dataclass(frozen=True)
class Metric:
    """One way to count an instance."""

    name: str
    verifier: str
    count: Literal["correct", "score"] = "correct"
    """Whether all must be right (0 or 1), or partial credit is given."""


Weighing = Literal["mc2", "acc", "acc_norm"]
"""A way to score the likelihoods of a question's options."""


@dataclass(frozen=True)
class TaskDefinition:
    load: Load
    metrics: tuple[Metric, ...] = ()
    """The first is the task's score; the others are reported beside it. None for a judged task."""
    judged: bool = False
    """Whether a judge rates the completions; the score is then the mean rating, 1 to 5."""
    classified: str = ""
    """Name of the metric, where a safety classifier decides: the share of completions that are
    what their prompt wants, which is the ground truth."""
    weighed: tuple[Weighing, ...] = ()
    """Names of the metrics, where the likelihoods of given options decide; the ground truth is
    those that are true. The first is the task's score."""
    compared: bool = False
    """Whether a judge compares the completions with a reference's; the score is the share that it
    prefers."""
    length_controlled: bool = False
    """Report beside that share what it would be at the reference's length."""
    macro: bool = False
    """Mean over the skills' means (MMLU's subjects), not over the instances."""
    pass_at: int | None = None
    """k of pass@k, where a task asks for several completions per instance."""

    @property
    def metric(self) -> str:
        return self.metric_names[0]

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.metrics:
            return tuple(metric.name for metric in self.metrics)
        other = "win_rate" if self.compared else self.classified or "mean_rating"
        return self.weighed or (other,)


class _Tasks(dict[str, TaskDefinition]):
    def __missing__(self, name: str) -> TaskDefinition:
        raise RecipeError(f"there is no evaluation task {name!r}{suggest_task(name)}")


def suggest_task(name: str) -> str:
    """Short names of other benchmarks are alike, so only a slip of a letter or two is one."""
    return suggest(name, sorted(TASKS), cutoff=0.8)


def definition_of(task: EvalTask) -> TaskDefinition:
    """The definition of a task, with the verifier that it names, if it names one."""
    definition = TASKS[task.task]
    if task.verifier is None:
        return definition
    return replace(definition, metrics=(Metric("score", task.verifier, "score"),))


def load_instances(task: EvalTask, seed: int, recipe_dir: Path) -> list[EvalInstance]:
    """The instances of a task, whose ground truths the verifier that it names can use.

    Raises:
        DataError: there are none, or one is not what it should be; names it.
    """
    instances = TASKS[task.task].load(task, seed, recipe_dir)
    verifier = VERIFIERS.get(task.verifier or "")
    if verifier is None or task.verifier == "code":  # which would run a program for each
        return instances
    for instance in instances:
        try:
            verifier("", instance.ground_truth)
        except DataError as error:
            raise DataError(f"evaluation task {task.name!r}: {instance.id}: {error}") from error
    return instances


def task_files(tasks: Iterable[EvalTask], recipe_dir: Path) -> Iterator[Path]:
    """Every file that the tasks read."""
    for task in tasks:
        if task.path is not None:
            path = recipe_dir / task.path
            yield from (
                sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            )


def limited(instances: Sequence[EvalInstance], limit: int | None) -> list[EvalInstance]:
    """`limit` of the instances, drawn once and for all, in their order."""
    if limit is None or limit >= len(instances):
        return list(instances)
    chosen = random.Random(20241122).sample(range(len(instances)), limit)
    return [instances[i] for i in sorted(chosen)]


def _from_pocket(task: str) -> Load:
    def load(config: EvalTask, seed: int, recipe_dir: Path = Path()) -> list[EvalInstance]:
        from caravan.pocket.tasks import instances

        return list(instances(task, config.limit or 200))

    return load


@dataclass(frozen=True)
class FromFiles:
    """Loads instances from the task's `path`, with one of the readers."""

    read: Callable[[Path, int], list[EvalInstance]]
    expected: str
    """What the path names."""
    origin: str

    def __call__(
        self, config: EvalTask, seed: int, recipe_dir: Path = Path()
    ) -> list[EvalInstance]:
        if lacking := self.lacks(config, recipe_dir):
            raise DataError(f"evaluation task {config.name!r} {lacking}")
        assert config.path is not None
        path = recipe_dir / config.path
        instances = self.read(path, config.num_fewshot)
        if not instances:
            raise DataError(f"evaluation task {config.name!r}: {path} holds no instance")
        return limited(instances, config.limit)

    def lacks(self, config: EvalTask, recipe_dir: Path | None) -> str:
        """What has to be done before the files can be read; without a directory, only whether
        they are named is looked at."""
        if config.path is None:
            return f"reads files: set its `path` to {self.expected} ({self.origin})"
        if recipe_dir is not None and not (path := recipe_dir / config.path).exists():
            return f"has no files: {path} is not there; put {self.expected} there ({self.origin})"
        return ""


_AI2 = "huggingface.co/datasets/allenai"

TASKS: dict[str, TaskDefinition] = _Tasks(
    {
        # the pocket recipe's, generated
        "pocket-math": TaskDefinition(_from_pocket("pocket-math"), (Metric("accuracy", "gsm8k"),)),
        "pocket-constraints": TaskDefinition(
            _from_pocket("pocket-constraints"),
            (
                Metric("prompt_level_strict_acc", "ifeval"),
                Metric("inst_level_strict_acc", "ifeval", "score"),
            ),
        ),
        "pocket-atlas": TaskDefinition(
            _from_pocket("pocket-atlas"), (Metric("accuracy", "contains"),)
        ),
        "pocket-lists": TaskDefinition(
            _from_pocket("pocket-lists"), (Metric("accuracy", "exact_match"),)
        ),
        "pocket-chat": TaskDefinition(_from_pocket("pocket-chat"), judged=True),
        # public benchmarks, from files
        "gsm8k": TaskDefinition(
            FromFiles(files.gsm8k, "test.jsonl", "github.com/openai/grade-school-math"),
            (Metric("exact_match", "gsm8k"),),
        ),
        "math": TaskDefinition(
            FromFiles(files.math, "test.jsonl or math500.jsonl", "github.com/hendrycks/math"),
            (Metric("exact_match_flex", "math"),),
        ),
        "ifeval": TaskDefinition(
            FromFiles(
                files.ifeval,
                "input_data.jsonl",
                "github.com/google-research/google-research, instruction_following_eval",
            ),
            (
                Metric("prompt_level_loose_acc", "ifeval_loose"),
                Metric("prompt_level_strict_acc", "ifeval"),
                Metric("inst_level_loose_acc", "ifeval_loose", "score"),
                Metric("inst_level_strict_acc", "ifeval", "score"),
            ),
        ),
        "mmlu": TaskDefinition(
            FromFiles(
                files.mmlu, "the folder with test/<subject>_test.csv", "github.com/hendrycks/test"
            ),
            (Metric("exact_match", "choice"),),
            macro=True,
        ),
        "bbh": TaskDefinition(
            FromFiles(
                files.bbh,
                "the folder with tasks/*.json and cot-prompts/*.txt (bbh/ upstream)",
                "github.com/suzgunmirac/BIG-Bench-Hard",
            ),
            (Metric("exact_match", "bbh"),),
        ),
        "humaneval": TaskDefinition(
            FromFiles(files.humaneval, "HumanEval.jsonl.gz", "github.com/openai/human-eval"),
            (Metric("pass", "code"),),
            pass_at=10,
        ),
        "humaneval_plus": TaskDefinition(
            FromFiles(
                files.humaneval,
                "HumanEvalPlus-OriginFmt.jsonl.gz",
                "github.com/evalplus/humanevalplus_release",
            ),
            (Metric("pass", "code"),),
            pass_at=10,
        ),
        "truthfulqa": TaskDefinition(
            FromFiles(files.truthfulqa, "mc_task.json", "github.com/sylinrl/TruthfulQA"),
            (Metric("mc1_generated", "choice"),),
        ),
        "truthfulqa_mc2": TaskDefinition(
            FromFiles(files.truthfulqa_mc2, "mc_task.json", "github.com/sylinrl/TruthfulQA"),
            weighed=("mc2",),
        ),
        "popqa": TaskDefinition(
            FromFiles(files.popqa, "popQA.tsv", "github.com/AlexTMallen/adaptive-retrieval"),
            (Metric("exact_match", "contains"),),
        ),
        "drop": TaskDefinition(
            FromFiles(files.drop, "drop_dataset_dev.json", "allenai.org/data/drop, from the paper"),
            (Metric("f1", "f1", "score"),),
        ),
        "mmlu_pro": TaskDefinition(
            FromFiles(
                exams.mmlu_pro,
                "test-00000-of-00001.parquet",
                "huggingface.co/datasets/TIGER-Lab/MMLU-Pro",
            ),
            (Metric("exact_match", "choice"),),
        ),
        "gpqa": TaskDefinition(
            FromFiles(exams.gpqa, "gpqa_main.csv", "huggingface.co/datasets/Idavidrein/gpqa"),
            (Metric("exact_match", "choice"),),
        ),
        "agieval_english": TaskDefinition(
            FromFiles(
                exams.agieval_english,
                "the folder with <test>.jsonl (data/v1 upstream)",
                "github.com/ruixiangcui/AGIEval",
            ),
            (Metric("exact_match", "choice"),),
        ),
        "deepmind_mathematics": TaskDefinition(
            FromFiles(
                exams.deepmind_mathematics,
                "the folder interpolate with <category>.txt of mathematics_dataset-v1.0.tar.gz",
                "github.com/google-deepmind/mathematics_dataset",
            ),
            (Metric("exact_match", "expression"),),
            macro=True,
        ),
        # questions of one's own
        VERIFY: TaskDefinition(
            FromFiles(own.questions, "your rows of prompt and ground_truth", "docs/evaluation.md")
        ),
        "weigh": TaskDefinition(
            FromFiles(
                own.questions_with_options,
                "your rows of prompt, options and ground_truth",
                "docs/evaluation.md",
            ),
            weighed=("acc", "acc_norm"),
        ),
        # the six safety sets
        "harmbench": TaskDefinition(
            FromFiles(
                safety.harmbench,
                "harmbench_behaviors_text_test.csv",
                f"github.com/centerforaisafety/HarmBench, or {_AI2}/tulu-3-harmbench-eval",
            ),
            classified="inverted_asr",
        ),
        "xstest": TaskDefinition(
            FromFiles(safety.xstest, "xstest_prompts.csv", "github.com/paul-rottger/xstest"),
            classified="accuracy",
        ),
        "wildguardtest": TaskDefinition(
            FromFiles(safety.wildguardtest, "wildguard_test.parquet", f"{_AI2}/wildguardmix"),
            classified="inverted_harm",
        ),
        "jailbreaktrigger": TaskDefinition(
            FromFiles(
                safety.jailbreaktrigger,
                "its Parquet file",
                f"{_AI2}/tulu-3-trustllm-jailbreaktrigger-eval",
            ),
            classified="inverted_asr",
        ),
        "do_anything_now": TaskDefinition(
            FromFiles(
                safety.do_anything_now, "its Parquet file", f"{_AI2}/tulu-3-do-anything-now-eval"
            ),
            classified="inverted_asr",
        ),
        "wildjailbreaktest": TaskDefinition(
            FromFiles(safety.wildjailbreaktest, "eval/eval.tsv", f"{_AI2}/wildjailbreak"),
            classified="accuracy",
            macro=True,
        ),
        # compared with a reference's replies
        "alpaca_eval_2": TaskDefinition(
            FromFiles(
                pairwise.alpaca_eval_2,
                "results/gpt4_1106_preview/model_outputs.json",
                "github.com/tatsu-lab/alpaca_eval",
            ),
            compared=True,
            length_controlled=True,
        ),
        "href": TaskDefinition(
            FromFiles(pairwise.href, "data/dev-00000-of-00001.parquet", f"{_AI2}/href"),
            compared=True,
        ),
        "alpaca_eval": TaskDefinition(
            FromFiles(
                files.alpaca_eval,
                "a model_outputs.json of the 805 prompts",
                "github.com/tatsu-lab/alpaca_eval",
            ),
            judged=True,
        ),
    }
)
