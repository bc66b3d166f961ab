"""What the readers of benchmarks share: files, rows, and instances out of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caravan.data.readers import read_raw
from caravan.data.records import EvalInstance, Message
from caravan.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def make_instance(
    id: str,
    question: str,
    examples: Sequence[tuple[str, str]],
    ground_truth: Any = None,
    skill: str = "",
    compared: str | None = None,
) -> EvalInstance:
    turns = []
    for asked, answered in examples:
        turns += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
    messages = (*turns, Message(role="user", content=question))
    return EvalInstance(
        id=id, messages=messages, ground_truth=ground_truth, skill=skill, question=compared
    )


def distinctive(question: str, options: Sequence[str]) -> str:
    """The question, with its options where it alone ("Which of these is true?") is everywhere."""
    return question if len(question.split()) >= 12 else "\n".join((question, *options))


def lettered(options: Sequence[str]) -> str:
    return "\n".join(f"({letter}) {o}" for letter, o in zip(LETTERS, options, strict=False))


def first_shots(
    pool: Sequence[tuple[str, str]], shots: int, path: Path
) -> Sequence[tuple[str, str]]:
    if shots > len(pool):
        raise DataError(f"{path}: num_fewshot is {shots}, but there are {len(pool)} examples")
    return pool[:shots]


def refuse_shots(shots: int, path: Path) -> None:
    if shots:
        raise DataError(f"{path}: this task is asked without examples; set num_fewshot to 0")


def text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def json_of(path: Path) -> Any:
    try:
        return json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def jsonl_rows(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, each with at least `fields`."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {number}: not JSON ({error})") from error
        missing = [f for f in fields if not isinstance(row, dict) or f not in row]
        if missing:
            raise DataError(f"{path}, row {number}: no field {missing[0]!r}")
        yield row


def table(path: Path, *fields: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, each with at least `fields`: JSON, CSV, Parquet, or TSV."""
    numbered = tsv_rows(path) if path.suffix == ".tsv" else read_raw(path)
    for number, row in numbered:
        for field in fields:
            if field not in row:
                raise DataError(
                    f"{path}, row {number}: no field {field!r}; there are {', '.join(row)}"
                )
        yield row


def tsv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), delimiter="\t")
    return enumerate(reader, start=1)
