"""Readers of examinations that Tülu 3 keeps unseen: multiple choice, and school mathematics.

All are asked without examples and answered after some reasoning (section 7.3 of
arXiv:2411.15124). The wording is ours; the closing phrase that it asks for is the paper's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from caravan.data.records import EvalInstance
from caravan.errors import DataError
from caravan.evals.reading import (
    LETTERS,
    distinctive,
    lettered,
    make_instance,
    refuse_shots,
    table,
    text_of,
)

AGIEVAL_ENGLISH = (
    "aqua-rat",
    "gaokao-english",
    "logiqa-en",
    "lsat-ar",
    "lsat-lr",
    "lsat-rc",
    "sat-en",
    "sat-math",
)
"""The English sets of AGIEval that are multiple choice (Zhong et al. 2023, arXiv:2304.06364)."""

MATHEMATICS_DRAWN = 100
"""Questions of each category, as in Tülu 3; the draw is ours."""
_MATHEMATICS_SEED = 1234
_MATHEMATICS_SHOWN = 3


def mmlu_pro(path: Path, shots: int) -> list[EvalInstance]:
    """Up to ten options (Wang et al. 2024, arXiv:2406.01574). Skill: the category.

    A row of the release: `{"question_id": 70, "question": "...", "options": ["...", ...],
    "answer": "I", "answer_index": 8, "category": "business", ...}`.
    """
    refuse_shots(shots, path)
    instances = []
    for row in table(path, "question_id", "question", "options", "answer", "category"):
        id = f"mmlu_pro/{row['question_id']}"
        options = [str(option) for option in row["options"]]
        _check_letter(path, id, row["answer"], options)
        instances.append(_choice(id, row["question"], options, row["answer"], row["category"]))
    return instances


def gpqa(path: Path, shots: int) -> list[EvalInstance]:
    """Graduate questions that a search does not answer (Rein et al. 2023, arXiv:2311.12022).

    The four options stand in an order drawn by the question's id. Skill: the domain.
    """
    refuse_shots(shots, path)
    instances = []
    columns = ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    for i, row in enumerate(table(path, "Question", *columns)):
        id = f"gpqa/{row.get('Record ID') or i}"
        order = list(range(len(columns)))
        random.Random(id).shuffle(order)
        options = [row[columns[k]].strip() for k in order]
        domain = str(row.get("High-level domain") or "")
        instances.append(
            _choice(id, row["Question"].strip(), options, LETTERS[order.index(0)], domain)
        )
    return instances


def agieval_english(path: Path, shots: int) -> list[EvalInstance]:
    """Admission tests, one file each, `path` being their folder. Skill: the test.

    A row: `{"passage": "..." or null, "question": "...", "options": ["(A)...", ...],
    "label": "C"}`. Left out are SAT English without its passages and MATH, which is no choice.
    """
    refuse_shots(shots, path)
    instances = []
    for test in AGIEVAL_ENGLISH:
        file = next((f for f in (path / f"{test}.jsonl", path / f"{test}.jsonl.gz") if f.exists()),
                    path / f"{test}.jsonl")  # fmt: skip
        for i, row in enumerate(table(file, "passage", "question", "options", "label")):
            id = f"agieval/{test}/{i}"
            options = [re.sub(r"^\s*\(?[A-E]\)\s*", "", option) for option in row["options"]]
            _check_letter(file, id, row["label"], options)
            passage = (row["passage"] or "").strip()
            instances.append(_choice(id, row["question"], options, row["label"], test, passage))
    return instances


def _check_letter(path: Path, id: str, letter: object, options: Sequence[str]) -> None:
    if not isinstance(letter, str) or letter not in LETTERS[: len(options)] or not letter:
        raise DataError(f"{path}, {id}: {letter!r} is none of its {len(options)} options")


def _choice(
    id: str, question: str, options: Sequence[str], letter: str, skill: str, passage: str = ""
) -> EvalInstance:
    asked = f"{passage}\n\nQuestion: {question}" if passage else f"Question: {question}"
    return make_instance(
        id,
        "Answer the following multiple-choice question. Reason concisely, then finish with "
        '"Therefore, the answer is (X)", where X is the letter of your choice.\n\n'
        f"{asked}\n{lettered(options)}",
        (),
        letter,
        skill,
        f"{passage}\n{question}" if passage else distinctive(question, options),
    )


def deepmind_mathematics(path: Path, shots: int) -> list[EvalInstance]:
    """School mathematics (Saxton et al. 2019, arXiv:1904.01557): a folder with a file for each
    category (`interpolate/` of mathematics_dataset-v1.0), question and answer in turn:

        Solve -42*r + 27*c = -1167 and 130*r + 4*c = 372 for r.
        4

    `MATHEMATICS_DRAWN` questions of each are asked, with the rules of notation and what answers of
    the category look like: three others of its answers. Skill: the category.
    """
    refuse_shots(shots, path)
    instances = []
    for file in sorted(path.glob("*.txt")):
        pairs = _mathematics_pairs(file)
        drawn = random.Random(_MATHEMATICS_SEED).sample(
            range(len(pairs)), min(MATHEMATICS_DRAWN, len(pairs))
        )
        asked = set(drawn)
        others = dict.fromkeys(a for i, (_, a) in enumerate(pairs) if i not in asked)
        shown = "; ".join(list(others)[:_MATHEMATICS_SHOWN])
        like = f" Answers to questions of this kind look like: {shown}." if shown else ""
        for i in sorted(drawn):
            question, answer = pairs[i]
            prompt = (
                "Solve the following problem step by step. Write the answer in plain notation: * "
                "for products, ** for powers, a/b for fractions in lowest terms, sqrt(x) for "
                f"roots, commas between several values, True or False for statements.{like} "
                'Finish with "Therefore, the final answer is [answer]. I hope it is correct.", '
                f"with your answer in place of [answer].\n\nProblem: {question}"
            )
            id = f"deepmind_mathematics/{file.stem}/{i}"
            instances.append(make_instance(id, prompt, (), answer, file.stem, question))
    return instances


def _mathematics_pairs(path: Path) -> list[tuple[str, str]]:
    lines = text_of(path).splitlines()
    if len(lines) % 2:
        raise DataError(
            f"{path}: not a question and its answer in turn; there is one line too many"
        )
    return list(zip(lines[::2], lines[1::2], strict=True))
