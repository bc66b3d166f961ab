import gzip
import json
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from caravan.data.readers import read_hub, read_raw
from caravan.errors import DataError, MissingExtraError
from caravan.recipe import HubSource

ROWS = [
    {"prompt": "q\u2028é", "completion": "a", "n": 1},
    {"prompt": "2", "completion": "b", "n": 2},
]


def write(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    match path.name.split(".", 1)[1]:
        case "jsonl" | "lines.json":
            path.write_text(lines, encoding="utf-8")
        case "bom.jsonl":
            path.write_text("\n" + lines.replace("\n", "\r\n"), encoding="utf-8-sig")
        case "json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json.gz":
            path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    "name",
    ["r.jsonl", "r.lines.json", "r.bom.jsonl", "r.json", "r.jsonl.gz", "r.json.gz", "r.parquet"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str):
    write(tmp_path / name, ROWS)
    assert [row for _, row in read_raw(tmp_path / name)] == ROWS


def test_csv_with_newlines_in_cells(tmp_path: Path):
    (tmp_path / "r.csv").write_bytes(b'prompt,completion\r\n"a\r\nb",c\r\n')
    assert list(read_raw(tmp_path / "r.csv")) == [(1, {"prompt": "a\r\nb", "completion": "c"})]
    (tmp_path / "twice.csv").write_text("prompt,response,prompt\na,b,c\n")
    with pytest.raises(DataError, match=r"twice.csv: more than one column is called 'prompt'"):
        list(read_raw(tmp_path / "twice.csv"))
    (tmp_path / "bad.csv").write_text("prompt,completion\na\n")
    with pytest.raises(DataError, match="row 1: more or fewer columns"):
        list(read_raw(tmp_path / "bad.csv"))


@pytest.mark.parametrize(
    "text", ['q,"never closed\np,b\n', '"said \\"so\\"",b\n', '"q" ,b\n'],
)  # fmt: skip
def test_csv_whose_quotes_do_not_match_is_refused_not_read_in_part(tmp_path: Path, text: str):
    (tmp_path / "r.csv").write_text(f"prompt,response\na,b\n{text}")
    with pytest.raises(DataError, match=r"r.csv, row 2: not CSV \("):
        list(read_raw(tmp_path / "r.csv"))


def test_csv_with_a_cell_of_many_kilobytes(tmp_path: Path):
    long = "word " * 100_000
    (tmp_path / "r.csv").write_text(f"prompt,completion\nq,{long}\n")
    assert list(read_raw(tmp_path / "r.csv")) == [(1, {"prompt": "q", "completion": long})]


def test_parquet_numbers_rows_over_batches(tmp_path: Path):
    write(tmp_path / "r.parquet", [{"n": n} for n in range(1, 2502)])
    assert all(number == row["n"] for number, row in read_raw(tmp_path / "r.parquet"))


compressed = partial(gzip.compress, mtime=0)
"""Without the time, which would be in the names of tests: workers must agree on those."""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b'{"a": 1}\n{"a": \n', "row 2: not JSON"),
        ("r.jsonl", b"3\n", "row 1: a row is an object, not int"),
        ("r.json", b"[3]", "row 1: a row is an object"),
        ("r.json", b"[{", "not JSON"),
        ("r.jsonl", b'{"a": "\xe9"}\n', "not UTF-8"),
        ("r.txt", b"", "cannot tell the format"),
        ("r.jsonl.gz", b"plain", "cannot read"),
        ("r.jsonl.gz", compressed(b'{"a": 1}\n' * 50)[:30], "cannot read"),
        ("r.jsonl.gz", compressed(b'{"a": 1}\n')[:10] + b"\xff" * 30, "cannot read"),
        ("r.jsonl", b'\n\n{"a": 1}\n{"a": \n', "row 4: not JSON"),
        ("r.jsonl", b'{"a": 1}\n' * 5000 + b'{"a": "\xe9"}\n', "line 5001: not UTF-8"),
        ("r.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", "row 2: not JSON"),
        ("r.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "row 1: too deeply nested"),
        ("r.json", b"[" * 100_000, "too deeply nested"),
        ("r.jsonl", b'{"a": 1}\n{"a": "x\\ud800"}\n', r"row 2: '\\ud800' is half of a character"),
        ("r.json", b'[{"a": "\\ud83d\\ude00"}, {"a": "\\ude00"}]', "row 2: .* half of a character"),
        ("r.jsonl.gz", compressed(b'{"a": 1}\n' * 3 + b'{"a": "\xe9"}\n'), "line 4: not UTF-8"),
        ("r.json", b'{\n  "data": []\n}\n', "an object over several lines; write one row a line"),
        ("r.csv", b"prompt;response\nq;a\n", "separated by ';'; write it with commas"),
        ("r.csv", b"prompt\tresponse\nq\ta\n", r"separated by '\\t'; write it"),
        ("r.parquet", b"PAR1", "write the file again"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read_raw(tmp_path / name))
    assert name in str(caught.value)


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path: Path):
    cells = pyarrow.array([b"fine"] * 1500 + [b"\xff"] + [b"fine"] * 600)
    prompts = pyarrow.array(["q"] * len(cells))
    table = pyarrow.table({"prompt": prompts, "ground_truth": cells.view(pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r.parquet, row 1501: column 'ground_truth' is not UTF-8"):
        list(read_raw(tmp_path / "r.parquet"))


def test_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl"):
        list(read_raw(tmp_path / "absent.jsonl"))


def test_hub_dataset_that_cannot_be_loaded_is_a_clear_error(tmp_path: Path):
    with pytest.raises((DataError, MissingExtraError), match=r"cannot load|caravan\[train\]"):
        list(read_hub(HubSource(dataset_name=str(tmp_path))))  # a directory without data


def test_hub_dataset_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "local").mkdir()
    write(tmp_path / "local" / "train.jsonl", ROWS)
    everything = list(read_hub(HubSource(dataset_name=str(tmp_path / "local"))))
    assert everything == [(1, ROWS[0]), (2, ROWS[1])]
    some = HubSource(dataset_name=str(tmp_path / "local"), where={"completion": ("b", "c")})
    assert list(read_hub(some)) == [(2, ROWS[1])]
    with pytest.raises(DataError, match="no column 'completions'; did you mean 'completion'"):
        list(read_hub(some.derive(where={"completions": ("b",)})))
