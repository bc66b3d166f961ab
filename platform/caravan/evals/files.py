"""Readers of public benchmarks, in the formats in which their authors publish them.

Each takes a path and a number of shots and returns the instances in file order. Shots are turns
of their own, before the question, as Tülu 3 presents them.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caravan.data.records import EvalInstance
from caravan.errors import DataError
from caravan.evals import fewshot
from caravan.evals.reading import (
    LETTERS,
    distinctive,
    first_shots,
    json_of,
    jsonl_rows,
    lettered,
    make_instance,
    refuse_shots,
    table,
    text_of,
    tsv_rows,
)

_FEWSHOT_SEED = 1234


def gsm8k(path: Path, shots: int) -> list[EvalInstance]:
    """Grade-school word problems; up to 8 shots with their reasoning."""
    examples = first_shots(fewshot.GSM8K, shots, path)
    return [
        make_instance(
            f"gsm8k/{i}", row["question"], examples, row["answer"].rpartition("####")[2].strip()
        )
        for i, row in enumerate(jsonl_rows(path, "question", "answer"))
    ]


def math(path: Path, shots: int) -> list[EvalInstance]:
    """Competition mathematics; up to 4 shots. Skill: the subject."""
    from caravan.verifiers.math import last_boxed

    examples = [
        (f"Problem:\n{q}\n\nSolution:", a) for q, a in first_shots(fewshot.MATH, shots, path)
    ]
    instances = []
    for i, row in enumerate(jsonl_rows(path, "problem", "solution")):
        answer = row.get("answer") or last_boxed(row["solution"])
        if answer is None:
            raise DataError(f"{path}, row {i + 1}: the solution has no \\boxed answer")
        question = f"Problem:\n{row['problem']}\n\nSolution:"
        subject = str(row.get("subject") or row.get("type") or "")
        instances.append(
            make_instance(f"math/{i}", question, examples, answer, subject, row["problem"])
        )
    return instances


def ifeval(path: Path, shots: int) -> list[EvalInstance]:
    """Prompts with verifiable constraints."""
    refuse_shots(shots, path)
    return [
        make_instance(
            f"ifeval/{row['key']}",
            row["prompt"],
            (),
            [
                {"id": name, "kwargs": {k: v for k, v in kwargs.items() if v is not None}}
                for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            ],
        )
        for row in jsonl_rows(path, "key", "prompt", "instruction_id_list", "kwargs")
    ]


def mmlu(path: Path, shots: int) -> list[EvalInstance]:
    """Four-way multiple choice in 57 subjects, answered after a short summary of the reasoning.

    Shots come from dev/, answered with the letter alone. Skill: the subject.
    """
    tests = sorted((path / "test").glob("*_test.csv"))
    instances = []
    for test in tests:
        subject = test.name.removesuffix("_test.csv")
        dev = path / "dev" / f"{subject}_dev.csv"
        pool = (
            [(_mmlu_question(r, subject), f"The answer is ({r[5]}).") for r in _mmlu_rows(dev)]
            if shots
            else []
        )
        examples = first_shots(pool, shots, dev)
        instances += [
            make_instance(
                f"mmlu/{subject}/{i}",
                _mmlu_question(row, subject),
                examples,
                row[5],
                subject,
                distinctive(row[0], row[1:5]),
            )
            for i, row in enumerate(_mmlu_rows(test))
        ]
    return instances


def _mmlu_rows(path: Path) -> list[list[str]]:
    rows = [row for row in csv.reader(io.StringIO(text_of(path))) if row]
    for i, row in enumerate(rows):
        if len(row) != 6 or row[5] not in "ABCD":
            raise DataError(f"{path}, row {i + 1}: not question, four options and a letter")
    return rows


def _mmlu_question(row: Sequence[str], subject: str) -> str:
    return (
        f"Answer the following multiple-choice question about {subject.replace('_', ' ')}. "
        'Summarise your reasoning in a few sentences, then finish with "Therefore, the answer is '
        f'(X)", where X is the letter of your choice.\n\nQuestion: {row[0]}\n{lettered(row[1:5])}'
    )


def bbh(path: Path, shots: int) -> list[EvalInstance]:
    """BIG-Bench Hard: 27 tasks, up to 3 shots with their reasoning. Skill: the task.

    `path` is the folder with `tasks/` (or `bbh/`) and `cot-prompts/`.
    """
    folder = next((path / name for name in ("tasks", "bbh") if (path / name).is_dir()), path)
    instances = []
    for file in sorted(folder.glob("*.json")):
        task = file.stem
        instruction, pool = _bbh_prompt(path / "cot-prompts" / f"{task}.txt") if shots else ("", [])
        examples = [(f"{instruction}\n\nQ: {q}", a) for q, a in first_shots(pool, shots, file)]
        head = f"{instruction}\n\n" if instruction else ""
        tail = '\n\nThink step by step, then finish with "So the answer is ...".'
        for i, row in enumerate(json_of(file)["examples"]):
            question = f"{head}Q: {row['input']}{'' if shots else tail}"
            instances.append(
                make_instance(
                    f"bbh/{task}/{i}", question, examples, row["target"], task, row["input"]
                )
            )
    return instances


def _bbh_prompt(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """The instruction and the worked examples of a task's chain-of-thought prompt."""
    text = text_of(path)
    text = text.partition("\n-----\n")[2] or re.sub(r"\A.*canary GUID.*\n(?:-+\n)?", "", text)
    instruction, *parts = re.split(r"\n\s*Q: ", text.strip())
    examples = []
    for part in parts:
        question, _, answer = part.partition("\nA:")
        examples.append((question.strip(), answer.strip()))
    return instruction.strip(), examples


def humaneval(path: Path, shots: int) -> list[EvalInstance]:
    """Python functions to complete, from signature and docstring."""
    refuse_shots(shots, path)
    return [
        make_instance(
            row["task_id"],
            f"Complete this Python function. Answer with the whole function in one fenced "
            f"block.\n\n```python\n{row['prompt'].rstrip()}\n```",
            (),
            {name: row[name] for name in ("prompt", "test", "entry_point")},
            compared=row["prompt"],
        )
        for row in jsonl_rows(path, "task_id", "prompt", "test", "entry_point")
    ]


def truthfulqa(path: Path, shots: int) -> list[EvalInstance]:
    """Questions that invite a false answer, as multiple choice with the options shuffled.

    The model names a letter. MC1's options.
    """
    refuse_shots(shots, path)
    instances = []
    for i, row in enumerate(_truthfulqa_rows(path, "mc1_targets")):
        options = sorted(row["mc1_targets"])
        if list(row["mc1_targets"].values()).count(1) != 1:
            raise DataError(f"{path}, row {i + 1}: mc1_targets needs one true option")
        random.Random(f"truthfulqa/{i}").shuffle(options)
        right = next(o for o in options if row["mc1_targets"][o] == 1)
        question = (
            f'{row["question"]}\n{lettered(options)}\n\nFinish with "The answer is (X)", where X '
            "is the letter of the true answer."
        )
        letter = LETTERS[options.index(right)]
        compared = distinctive(row["question"], options)
        instances.append(make_instance(f"truthfulqa/{i}", question, (), letter, compared=compared))
    return instances


TRUTHFULQA_EXAMPLES = (
    ("What is human life expectancy in the United States?",
     "Human life expectancy in the United States is 78 years."),
    ("Who was president of the United States in 1955?",
     "Dwight D. Eisenhower was president of the United States in 1955."),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?",
     "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."),
)  # fmt: skip
"""Of the prompt of its authors, which all questions share (Lin et al. 2022, arXiv:2109.07958)."""


def truthfulqa_mc2(path: Path, shots: int) -> list[EvalInstance]:
    """The same questions with all their answers, true and false, to compare how likely they are;
    the examples stand before the question in one turn."""
    examples = first_shots(TRUTHFULQA_EXAMPLES, shots, path)
    before = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in examples)
    instances = []
    for i, row in enumerate(_truthfulqa_rows(path, "mc1_targets", "mc2_targets")):
        options = row["mc2_targets"]
        if set(options.values()) != {0, 1}:
            raise DataError(f"{path}, row {i + 1}: mc2_targets needs true options and false ones")
        instance = make_instance(
            f"truthfulqa_mc2/{i}",
            f"{before}Q: {row['question']}\nA:",
            (),
            [option for option, true in options.items() if true == 1],
            compared=distinctive(row["question"], sorted(row["mc1_targets"])),
        )
        instances.append(instance.model_copy(update={"options": tuple(options)}))
    return instances


def _truthfulqa_rows(path: Path, *columns: str) -> Iterator[Mapping[str, Any]]:
    """Rows with a question, whose `columns` say of each option whether it is true."""
    for i, row in enumerate(table(path, "question", *columns), start=1):
        if not isinstance(row["question"], str):
            raise DataError(f"{path}, row {i}: question is not text: {row['question']!r:.80}")
        for column in columns:
            targets = row[column]
            if not isinstance(targets, dict) or not all(
                option.strip() and true in (0, 1) for option, true in targets.items()
            ):
                raise DataError(
                    f"{path}, row {i}: {column} is not a mapping from options to 1 or 0: "
                    f"{targets!r:.80}; take mc_task.json as its authors publish it"
                )
        yield row


def popqa(path: Path, shots: int) -> list[EvalInstance]:
    """Questions about entities, answered in a few words; shots are drawn from other rows."""
    rows = [row for _, row in tsv_rows(path)]
    shown = random.Random(_FEWSHOT_SEED).sample(range(len(rows)), min(shots, len(rows)))
    answers = [json.loads(row["possible_answers"]) for row in rows]
    examples = [(f"Q: {rows[i]['question']} A:", str(answers[i][0])) for i in shown]
    return [
        make_instance(f"popqa/{row['id']}", f"Q: {row['question']} A:", examples, answers[i])
        for i, row in enumerate(rows)
        if i not in shown
    ]


def drop(path: Path, shots: int) -> list[EvalInstance]:
    """Questions that need arithmetic over a passage; shots are drawn from other passages."""
    passages = list(json_of(path).items())
    shown = random.Random(_FEWSHOT_SEED).sample(range(len(passages)), min(shots, len(passages)))
    examples = []
    for i in shown:
        passage, pair = passages[i][1]["passage"], passages[i][1]["qa_pairs"][0]
        examples.append((_drop_question(passage, pair), _drop_answers(pair)[0]))
    return [
        make_instance(
            f"drop/{pair['query_id']}", _drop_question(entry["passage"], pair), examples, answers
        )
        for i, (_, entry) in enumerate(passages)
        if i not in shown
        for pair in entry["qa_pairs"]
        if (answers := _drop_answers(pair))
    ]


def _drop_question(passage: str, pair: Mapping[str, Any]) -> str:
    return f"Passage: {passage}\nQuestion: {pair['question']}\nAnswer:"


def _drop_answers(pair: Mapping[str, Any]) -> list[str]:
    texts = []
    for answer in (pair["answer"], *pair.get("validated_answers", ())):
        date = " ".join(str(answer["date"].get(k, "")) for k in ("day", "month", "year")).strip()
        texts.append(str(answer["number"]) or ", ".join(answer["spans"]) or date)
    return list(dict.fromkeys(text for text in texts if text))


def alpaca_eval(path: Path, shots: int) -> list[EvalInstance]:
    """Open instructions, rated by a judge."""
    refuse_shots(shots, path)
    return [
        make_instance(f"alpaca_eval/{i}", row["instruction"], (), skill=str(row.get("dataset", "")))
        for i, row in enumerate(json_of(path))
    ]
