"""python -m tests.benchmarks.evaluate_side SIDE MODEL OUT: one side of the evaluation.

Each loads the model, asks it all questions greedily and scores its replies. What came out is, for
each task, every reply with its score. With `-options` behind the name it weighs the options of
questions instead, and tells whether the likeliest is right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import evaluate_work as e
from tests.benchmarks.turns import measured
from tests.tiny import Context

from caravan.data.io import read_rows
from caravan.evals.scoring import ScoredCompletion
from caravan.inference import transformers_engine  # noqa: F401 (imports are not measured)
from caravan.recipe import EvalTask, EvaluateConfig, Resources, Sampling
from caravan.stages import evaluate
from caravan.stages.configs import EvaluateStageConfig
from caravan.training.models import prepare_torch

GREEDY = Sampling(temperature=0.0, max_completion_length=e.MAX_COMPLETION)
STRICT = "prompt_level_strict_acc"


def caravan(model: Path, out: Path) -> None:
    tasks = tuple(
        EvalTask(name=name, task=task, limit=e.QUESTIONS, sampling=GREEDY)
        for name, task in e.TASKS.items()
    )
    suite = EvaluateConfig(tasks=tasks, batch_size=e.BATCH, resources=Resources(cpus=1))
    context = Context(out)

    def outcome(_: object) -> dict[str, Any]:
        rows = list(read_rows(out / "out/evaluation/instances.jsonl", ScoredCompletion))
        return {name: [[r.completion, r.score] for r in rows if r.task == name] for name in e.TASKS}

    measured(
        lambda: evaluate.run(EvaluateStageConfig(evaluate=suite), {"model": model}, context),
        outcome,
    )


def caravan_options(model: Path, out: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in e.options())
    (out / "options.jsonl").write_text(rows, encoding="utf-8")
    task = EvalTask(name="options", task="weigh", path=str(out / "options.jsonl"))
    suite = EvaluateConfig(tasks=(task,), batch_size=e.BATCH, resources=Resources(cpus=1))
    context = Context(out)

    def outcome(_: object) -> list[float | None]:
        kept = read_rows(out / "out/evaluation/instances.jsonl", ScoredCompletion)
        return [row.score for row in kept]

    measured(
        lambda: evaluate.run(EvaluateStageConfig(evaluate=suite), {"model": model}, context),
        outcome,
    )


def lm_eval_options(model: Path, out: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    config = {
        "task": "options", "custom_dataset": _options, "test_split": "test", "num_fewshot": 0,
        "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "options",
        "doc_to_target": 0, "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip

    def work() -> Any:
        tasks = [ConfigurableTask(config=config)]
        return simple_evaluate(
            _hflm(model), tasks=tasks, apply_chat_template=True, bootstrap_iters=0
        )

    def outcome(found: Any) -> list[float]:
        samples = sorted(found["samples"]["options"], key=lambda s: s["doc_id"])
        return [float(sample["acc"]) for sample in samples]

    measured(work, outcome)


def _hflm(model: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(model), device="cpu", dtype="float32", batch_size=e.BATCH,
        max_length=e.SHAPE.window,
    )  # fmt: skip


def _options(**_: object) -> Mapping[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(e.options())}


def lm_eval(model: Path, out: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.ifeval.utils import process_results

    generation = {"until": [], "do_sample": False, "max_gen_toks": e.MAX_COMPLETION}
    common = {
        "output_type": "generate_until", "test_split": "test", "doc_to_text": "prompt",
        "num_fewshot": 0, "generation_kwargs": generation,
    }  # fmt: skip
    number = [
        {"function": "regex", "group_select": -1,
         "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
        {"function": "take_first"},
    ]  # fmt: skip
    exact = {
        "metric": "exact_match",
        "ignore_case": True,
        "regexes_to_ignore": [",", r"\$", r"\.$"],
    }
    own = {
        "math": {
            "doc_to_target": "answer",
            "filter_list": [{"name": "flexible-extract", "filter": number}],
            "metric_list": [exact | {"aggregation": "mean", "higher_is_better": True}],
        },
        "constraints": {
            "doc_to_target": 0,
            "process_results": lambda doc, replies: {STRICT: process_results(doc, replies)[STRICT]},
            "metric_list": [{"metric": STRICT, "aggregation": "mean", "higher_is_better": True}],
        },
    }  # as its gsm8k.yaml (flexible-extract) and ifeval.yaml have it

    def work() -> Any:
        tasks = [
            ConfigurableTask(
                config={"task": name, "custom_dataset": _rows(name), **common, **own[name]}
            )
            for name in e.TASKS
        ]
        return simple_evaluate(
            _hflm(model), tasks=tasks, apply_chat_template=True, bootstrap_iters=0
        )

    def outcome(found: Any) -> dict[str, Any]:
        metrics = {"math": "exact_match", "constraints": STRICT}
        return {
            name: [
                [s["resps"][0][0], float(s[metrics[name]])]
                for s in sorted(samples, key=lambda s: s["doc_id"])
            ]
            for name, samples in found["samples"].items()
        }

    measured(work, outcome)


def _rows(task: str) -> Any:
    """The questions as a dataset of its."""
    from datasets import Dataset

    def load(**_: object) -> Mapping[str, Any]:
        rows = []
        for number, question in enumerate(e.questions(task)):
            row = {"prompt": question.messages[-1].content}
            if task == "math":
                row |= {"answer": question.ground_truth}
            else:
                row |= {
                    "key": number,
                    "instruction_id_list": [c["id"] for c in question.ground_truth],
                    "kwargs": [c["kwargs"] for c in question.ground_truth],
                }
            rows.append(row)
        return {"test": Dataset.from_list(rows)}

    return load


SIDES = {
    "caravan": caravan,
    "lm-eval": lm_eval,
    "caravan-options": caravan_options,
    "lm-eval-options": lm_eval_options,
}


def main(arguments: Sequence[str]) -> None:
    side, model, out = arguments
    prepare_torch(1, 0)
    SIDES[side](Path(model), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
