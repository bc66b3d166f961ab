"""Tables for spreadsheets, which take a text for a formula by the character that it begins with."""

from __future__ import annotations

import csv

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the full-width forms of the first."""


def as_csv(table: pd.DataFrame) -> str:
    """The table with text in quotes, an apostrophe before what would be a formula (OWASP, CSV
    injection); numbers are as they are."""
    harmless = table.map(_harmless).rename(columns=_harmless)
    return str(harmless.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
