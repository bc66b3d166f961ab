"""Pages of a rows file that may be far larger than memory.

One pass over the file keeps, for each row, where it starts and the few facts that the filters of a
page need; a page of rows is then read by seeking. Nothing else is ever held or sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json  # in two thirds of the time that json takes

from caravan.data.io import describe
from caravan.errors import DataError

Facts = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Row = TypeVar("Row", bound=BaseModel)


def index_rows(path: Path, facts: Facts, columns: tuple[str, ...]) -> pd.DataFrame:
    """One line per row of the file: its `offset` in bytes, and `columns` as `facts` gives them.

    Raises:
        DataError: the file cannot be read, or a row is not a JSON object with the fields asked for.
    """
    offsets: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in columns}
    position = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = _facts_of(line, facts, path, number)
                    offsets.append(position)
                    for name in columns:
                        values[name].append(found[name])
                position += len(line)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the store") from error
    return pd.DataFrame({"offset": offsets, **values})


def _facts_of(line: bytes, facts: Facts, path: Path, number: int) -> Mapping[str, Any]:
    try:
        return facts(from_json(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}, row {number}: not as expected ({reason})") from error


def search_rows(path: Path, text: str) -> frozenset[int]:
    """Where the rows start in which a value holds `text`, whatever its case."""
    wanted = text.casefold()
    as_written = json.dumps(wanted, ensure_ascii=False)[1:-1]
    found, position = [], 0
    with path.open("rb") as file:
        for line in file:
            # Few lines hold it; only of those is it asked whether a value does or a field's name.
            if as_written in line.decode().casefold() and _holds(from_json(line), wanted):
                found.append(position)
            position += len(line)
    return frozenset(found)


def _holds(value: object, wanted: str) -> bool:
    if isinstance(value, str):
        return wanted in value.casefold()
    if isinstance(value, Mapping):
        return any(_holds(part, wanted) for part in value.values())
    return isinstance(value, list) and any(_holds(part, wanted) for part in value)


def read_rows_at(path: Path, offsets: Iterable[int], record: type[Row]) -> list[Row]:
    """The rows that start at `offsets`, in that order.

    Raises:
        DataError: a row is not a `record`.
    """
    rows = []
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            try:
                rows.append(record.model_validate_json(file.readline()))
            except ValidationError as error:
                raise DataError(f"{path}, at byte {offset}: {describe(error)}") from error
    return rows


def page_count(rows: int, page_size: int) -> int:
    """At least one: an empty table has one empty page."""
    return max(1, -(-rows // page_size))


def page_of(table: pd.DataFrame, page: int, page_size: int) -> pd.DataFrame:
    """Page number `page`, from 1; past the end, the last one."""
    page = min(max(1, page), page_count(len(table), page_size))
    return table.iloc[(page - 1) * page_size : page * page_size]
