"""Rows out of files, as others write them: JSON, CSV and parquet, gzipped or not, and the hub.

docs/data-formats.md lists the kinds of files.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from caravan.data.io import not_utf8
from caravan.errors import DataError, require
from caravan.recipe import HubSource
from caravan.recipe.checks import suggest

RawRow = Mapping[str, Any]

csv.field_size_limit(2**31 - 1)
"""Documents in one cell are longer than the default of 128 KiB."""

SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
"""An escape of JSON that stands for half of a character."""


def read_raw(path: Path) -> Iterator[tuple[int, RawRow]]:
    """(number, row) of a .jsonl, .json, .parquet or .csv file, gzipped or not; numbers from 1.

    A .json file holds one list of rows, or one row a line.

    Raises:
        DataError: names the file, the row and what to do.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers: dict[str, Callable[[Path], Iterator[tuple[int, RawRow]]]] = {
        ".jsonl": _read_json,
        ".ndjson": _read_json,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise DataError(f"{path}: cannot tell the format; name it {', '.join(readers)} (or .gz)")
    number = 0
    try:
        for number, row in readers[suffix](path):
            yield number, row
    except UnicodeDecodeError as error:
        open_binary = gzip.open if path.suffix == ".gz" else open
        raise not_utf8(path, cast(IO[bytes], open_binary(path, "rb"))) from error
    except csv.Error as error:
        raise DataError(f"{path}, row {number + 1}: not CSV ({error}); correct it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; check the file") from error


def read_hub(origin: HubSource) -> Iterator[tuple[int, RawRow]]:
    """(number, row) of a dataset on the hub, from the local cache where it holds it."""
    datasets = require("datasets", extra="train", feature=f"reading {origin.dataset_name}")
    try:
        rows = datasets.load_dataset(
            origin.dataset_name, origin.config_name, split=origin.split, revision=origin.revision
        )
    except Exception as error:
        if isinstance(error, ConnectionError) and datasets.config.HF_HUB_OFFLINE:
            raise DataError(
                f"dataset {origin.dataset_name!r} is not in the hub's local cache"
            ) from error
        raise DataError(
            f"cannot load dataset {origin.dataset_name!r} (split {origin.split!r}): {error}; "
            "check name, split and network, or give the rows as files"
        ) from error
    chosen: Sequence[int] = range(len(rows))
    for column, values in origin.where.items():
        if column not in rows.column_names:
            raise DataError(
                f"dataset {origin.dataset_name!r} has no column {column!r}"
                f"{suggest(column, rows.column_names)}; correct `where`"
            )
        # Read one column, not every row: a mixture of a million rows is sliced many times.
        cells = list(rows[column])
        chosen = [i for i in chosen if cells[i] in values]
    for i in chosen:
        yield i + 1, rows[i]


def _open(path: Path, newline: str = "\n") -> IO[str]:
    # utf-8-sig: a byte-order mark is no part of the first field.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _read_json(path: Path) -> Iterator[tuple[int, RawRow]]:
    with _open(path) as file:
        first, number = file.readline(), 1
        while first and not first.strip():
            first, number = file.readline(), number + 1
        if first.lstrip().startswith("["):
            text = first + file.read()
            halves = _may_hold_halves(text)
            for number, row in enumerate(_parse_json(text, f"{path}"), start=1):
                yield number, _row(row, f"{path}, row {number}", halves=halves)
            return
        if first.strip() == "{":
            raise DataError(
                f"{path}: an object over several lines; write one row a line, or one list of rows"
            )
        while first:
            if first.strip():
                where = f"{path}, row {number}"
                row = _parse_json(first, where)
                yield number, _row(row, where, halves=_may_hold_halves(first))
            first, number = file.readline(), number + 1


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: too deeply nested; correct or remove it") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        reason = str(error).partition(";")[0]  # the rest is advice for Python
        raise DataError(f"{where}: not JSON ({reason}); correct or remove it") from error


def _may_hold_halves(text: str) -> bool:
    """Whether JSON has escapes of halves of characters; mostly both halves are there."""
    return SURROGATE.search(text) is not None


def _row(value: Any, where: str, *, halves: bool) -> RawRow:
    """
    Args:
        halves: the JSON that the row is part of may hold halves of characters.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is an object, not {type(value).__name__}; correct it")
    if halves:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start : error.end])
            raise DataError(
                f"{where}: {half} is half of a character, which UTF-8 does not have; correct or "
                "remove it"
            ) from error
    return value


def _read_csv(path: Path) -> Iterator[tuple[int, RawRow]]:
    with _open(path, newline="") as file:
        # strict: a quote that is never closed would take all rows after it into one cell.
        reader = csv.DictReader(file, strict=True)
        names = reader.fieldnames or ()
        if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
            raise DataError(
                f"{path}: its columns are separated by {other[0]!r}; write it with commas"
            )
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(
                f"{path}: more than one column is called {twice[0]!r}; rename all but one"
            )
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, row {number}: more or fewer columns than the header; correct it"
                )
            yield number, row


def _read_parquet(path: Path) -> Iterator[tuple[int, RawRow]]:
    pyarrow = require("pyarrow", extra="train", feature=f"reading {path.name}")
    parquet = require("pyarrow.parquet", extra="train", feature=f"reading {path.name}")
    number = 0
    try:
        source = pyarrow.input_stream(str(path)).read() if path.suffix == ".gz" else None
        file = parquet.ParquetFile(pyarrow.BufferReader(source) if source else path)
        for batch in file.iter_batches(batch_size=1000):
            for row in _parquet_rows(batch, path, number):
                number += 1
                yield number, row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}, after row {number}: {error}; write the file again") from error


def _parquet_rows(batch: Any, path: Path, before: int) -> Sequence[RawRow]:
    """The rows of a batch, which is read as a whole; only where that fails, one by one."""
    try:
        return cast(list[RawRow], batch.to_pylist())
    except (UnicodeDecodeError, RecursionError):
        for i in range(batch.num_rows):
            for column in batch.column_names:
                where = f"{path}, row {before + i + 1}: column {column!r}"
                try:
                    batch.column(column)[i].as_py()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{where} is not UTF-8 ({error.reason}); write the file again"
                    ) from error
                except RecursionError as error:
                    raise DataError(f"{where} is too deeply nested; remove the row") from error
        raise
