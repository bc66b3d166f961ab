import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Conversation, Message, Record
from caravan.errors import DataError


class Note(Record):
    name: str
    value: float = 0.0
    maybe: int | None = None
    required: int | None


def conversation(n: int, text: str = "hi") -> Conversation:
    return Conversation(
        id=f"s/{n}",
        messages=(Message(role="user", content=text), Message(role="assistant", content="yo")),
        source="s",
        skill="chat",
        license="MIT",
    )


@settings(max_examples=50)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [conversation(n, text) for n, text in enumerate(texts)]
    assert write_rows(path, rows) == len(rows)
    assert list(read_rows(path, Conversation)) == rows
    assert list(read_rows(path.parent, Conversation)) == rows


def test_line_separators_inside_text_do_not_end_a_row(tmp_path: Path):
    rows = [conversation(0, "a\u2028b\x85c\r\nd\x0c")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path, Conversation)) == rows


def test_field_order_is_that_of_the_record_and_optional_none_is_left_out(tmp_path: Path):
    write_rows(tmp_path / "n.jsonl", [Note(required=None, name="é")])
    text = (tmp_path / "n.jsonl").read_text(encoding="utf-8")
    assert text == '{"name": "é", "value": 0.0, "required": null}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"name": "a"}', r"row 2: field 'required'"),
        ('{"name": 3, "required": 1}', r"row 2: field 'name': .*got 3"),
        ('{"name": "a", "required": 1, "nam": 2}', r"row 2: field 'nam'"),
        ('{"name": "a", "requ', r"row 2: .*cut short"),
    ],
)
def test_bad_row_is_named_by_file_number_and_field(tmp_path: Path, line: str, said: str):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"name": "ok", "required": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=said) as caught:
        list(read_rows(path, Note))
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        list(read_rows(tmp_path / "absent.jsonl", Note))
    (tmp_path / "latin.jsonl").write_bytes(b'{"name": "\xe9", "required": 1}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_rows(tmp_path / "latin.jsonl", Note))


def test_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "n.jsonl"
    write_rows(path, [Note(name="old", required=1)])
    with pytest.raises(DataError, match="row 2"):
        write_rows(path, [Note(name="a", required=1), Note(name="\ud800", required=1)])
    with pytest.raises(DataError, match="row 1"):
        write_rows(path, [Note(name="a", value=float("nan"), required=1)])
    assert [row.name for row in read_rows(path, Note)] == ["old"]
    assert os.listdir(tmp_path) == ["n.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / f".n.jsonl.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"No space left.*free space"):
        write_rows(tmp_path / "n.jsonl", [Note(name="a", required=1)])
    assert os.listdir(tmp_path) == []


def test_a_number_that_json_cannot_hold_is_refused_wherever_it_is(tmp_path: Path):
    row = conversation(1).model_copy(update={"verifier": "gsm8k", "ground_truth": [float("inf")]})
    with pytest.raises(DataError, match=r"rows.jsonl, row 2: cannot be written as JSON"):
        write_rows(tmp_path / "rows.jsonl", [conversation(0), row])
    assert list(tmp_path.iterdir()) == []


def test_the_line_that_is_not_utf8_is_named_however_far_down(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [conversation(n) for n in range(3000)])
    path.write_bytes(path.read_bytes() + b'{"id": "\xe9"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 3001: not UTF-8"):
        list(read_rows(path, Conversation))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [conversation(0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_rows(path, Conversation)) == [conversation(0)]
