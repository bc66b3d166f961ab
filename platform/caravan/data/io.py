"""Rows on disk: JSONL in UTF-8, one record a line, written beside and renamed when complete.

    {"id": "pocket-gsm/17", "messages": [...], "source": "pocket-gsm", ...}

A field that may be absent and is None is left out; every other field is written in the order in
which its record defines it, so equal rows give equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from caravan.errors import DataError

ROWS = "rows.jsonl"
"""Name of the rows file in a `dataset`, `completions` or `pairs` artifact."""

Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, record: type[Row]) -> Iterator[Row]:
    """The rows of a JSONL file, or of the `rows.jsonl` of an artifact directory, one by one.

    Raises:
        DataError: the file is missing or a row does not fit; names file, row number and field.
    """
    path = path / ROWS if path.is_dir() else path
    try:
        # Only "\n" ends a row: U+2028 and friends are legal inside a JSON string.
        file = path.open(encoding="utf-8-sig", newline="\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    with file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(line, record, path, number)
        except UnicodeDecodeError as error:
            raise not_utf8(path, path.open("rb")) from error


def not_utf8(path: Path, file: IO[bytes]) -> DataError:
    """The error that names the first line of `file` that is not UTF-8.

    Text is decoded in blocks, so whoever reads it as text learns of it many lines too early.
    """
    with file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}); re-encode the file"
                )
    return DataError(f"{path}: not UTF-8; re-encode the file")


def write_rows(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write `rows` to `path`, all or nothing; returns how many there were.

    Raises:
        DataError: a row cannot be written as JSON, or the file cannot be written.
    """
    count = 0

    def write(file: IO[str]) -> None:
        nonlocal count
        for count, row in enumerate(rows, start=1):
            try:
                file.write(to_line(row))
            except DataError as error:
                raise DataError(f"{path}, row {count}: {error}") from error

    _atomically(path, write)
    return count


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document with sorted keys, all or nothing."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, all or nothing."""
    _atomically(path, lambda file: file.write(text))


def to_line(row: BaseModel) -> str:
    """A record as one line of JSON.

    Raises:
        DataError: it holds what JSON in UTF-8 cannot hold.
    """
    fields = type(row).model_fields
    values = {
        name: value
        for name, value in row.model_dump(mode="json").items()
        if value is not None or fields[name].is_required()
    }
    try:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
        line.encode("utf-8")
    except ValueError as error:  # NaN, or half of a surrogate pair
        raise DataError(f"cannot be written as JSON ({error}); correct the row") from error
    return line + "\n"


def describe(error: ValidationError) -> str:
    """What is wrong with a record, on one line: `messages.0.role: ... (got 'bot')`."""
    parts = []
    for problem in error.errors(include_url=False, include_context=False):
        field = ".".join(str(step) for step in problem["loc"])
        given = problem.get("input")
        shown = f" (got {given!r:.80})" if isinstance(given, str | int | float | bool) else ""
        message = problem["msg"].removeprefix("Value error, ")
        parts.append(f"field {field!r}: {message}{shown}" if field else message)
    return "; ".join(parts)


def _parse(line: str, record: type[Row], path: Path, number: int) -> Row:
    try:
        return record.model_validate_json(line)
    except ValidationError as error:
        hint = (
            "the row is cut short or is not JSON; write the file again"
            if error.errors(include_url=False)[0]["type"] == "json_invalid"
            else "correct or remove the row"
        )
        raise DataError(f"{path}, row {number}: {describe(error)}; {hint}") from error


def _atomically(path: Path, write: Callable[[IO[str]], object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}; free space or choose a writable directory"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
