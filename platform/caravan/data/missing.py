"""Texts that programs write in place of a missing value, such as pandas' `nan`.

"None" may be the right answer to a question, so these are told of and not refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caravan.errors import some

MISSING = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT"})
NAMED = 3
"""Rows named where there are many."""


def any_missing(texts: Iterable[str]) -> bool:
    """Whether one of the texts is nothing but such a word."""
    return any(text.strip() in MISSING for text in texts)


def may_be_missing(ids: Sequence[str]) -> str:
    """What is said of rows with such a text."""
    return (
        f"{len(ids):,} with a turn that is only nan, None or null ({some(ids, NAMED)}): where that "
        "stands for a missing value, leave the cell empty or take the row out"
    )
