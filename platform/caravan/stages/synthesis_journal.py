"""The attempts at the rows of a synthesis task, on disk as they end: a stage that is started again
goes on from them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from caravan.data.dedup import normalise
from caravan.data.io import to_line
from caravan.data.records import Conversation, Record
from caravan.errors import DataError


class Attempt(Record):
    """One line of the journal: a row that passed, or why an attempt at it did not."""

    id: str
    attempt: int
    row: Conversation | None = None
    reason: str | None = None
    excerpt: str | None = None
    """Beginning of the text that was rejected."""


class Journal:
    """The attempts of one task, on disk as they end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts: list[Attempt] = []
        self.rows: dict[str, Conversation] = {}
        self._last: dict[str, int] = {}
        self._prompts: set[str] = set()
        self._unwritten: list[str] = []
        self._read()

    def _read(self) -> None:
        """Take up what an earlier start wrote; a line cut short by its end is dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        complete = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    attempt = Attempt.model_validate_json(line)
                except ValidationError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._remember(attempt)
                complete += len(line)
        os.truncate(self.path, complete)

    def is_due(self, id: str, attempt: int) -> bool:
        """The row has not passed yet, and this is the next attempt at it."""
        return id not in self.rows and self._last.get(id, 0) == attempt - 1

    def has_prompt(self, text: str) -> bool:
        return normalise(text) in self._prompts

    def add(self, attempt: Attempt) -> None:
        self._unwritten.append(to_line(attempt))
        self._remember(attempt)

    def flush(self) -> None:
        """Make sure that what was added survives."""
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(self._unwritten)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; free space") from error
        self._unwritten.clear()

    def _remember(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self._last[attempt.id] = attempt.attempt
        if attempt.row is not None:
            self.rows[attempt.id] = attempt.row
            self._prompts.add(normalise(attempt.row.messages[0].content))
